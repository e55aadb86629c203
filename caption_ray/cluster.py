"""Joining a Ray cluster, or starting one on this machine."""

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data

from caption_ray.errors import UsageError
from caption_ray.logs import quieten_ray_workers

logger = logging.getLogger(__name__)

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""Environment in which glibc's malloc does not give a block's or a step's memory back to the system only to have it
faulted in, page by page, for the next one."""

_SWITCHES = ("CAPTION_RAY_KERNEL", "CAPTION_RAY_GRAPHS")
"""Environment by which a job turns off what workers would do; those of a local cluster inherit it."""

_RAY_TRAIN = {
    # How often it looks at its workers: every two seconds by itself, and a run ends two such looks late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A process that tells workers of a node about to go, as train.stopping does, which does not depend on Ray.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

_HOOK = "caption_ray.logs.quieten_ray_workers"
_HOOK_WITH_ADDRESS = "caption_ray.cluster.prepare_worker"

_NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:0"}
"""Environment of the workers of a cluster without a dashboard.

An actor of Ray Train's asks one every second whether the training's controller lives, and has all workers killed where
it is told no. It would else find that of another Ray on the machine, such as `serve run` starts, which knows of no such
controller (2.60)."""

_PATIENCE_S = 30.0
"""How long a cluster is waited for that does not answer."""

_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def connect(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """Have Ray for the length of a `with` block, and shut down only what was started for it.

    Inside another such block nothing is started. Else the cluster that RAY_ADDRESS names is joined, and
    where it names none a local one starts with `num_cpus` logical CPUs, by default all that this process
    may use and at least two: a reader and its consumer hold one each. What the workers print reaches
    stderr. With `dashboard` a local one has Ray's dashboard, its address is logged, and the workers know it.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    _quieten()
    if address and address != "local":
        logger.info("joining the Ray cluster at %s", address)
        told = _for_all_workers(address, dashboard)
        try:
            context = ray.init(address, runtime_env={"env_vars": told} if told else None, logging_level=logging.WARNING)
        except ConnectionError as error:  # "auto", and nothing to be found on this machine; or ray://
            raise _no_cluster(address, error) from error
    else:
        _keep_token_private()
        with _deaf_children(signal.SIGUSR1):
            context = ray.init(
                "local",
                num_cpus=num_cpus or max(2, _usable_cpus()),
                include_dashboard=dashboard,
                runtime_env=(
                    {"worker_process_setup_hook": _HOOK_WITH_ADDRESS}
                    if dashboard
                    else {"worker_process_setup_hook": _HOOK, "env_vars": _NO_DASHBOARD}
                ),
                logging_level=logging.WARNING,
            )
    if dashboard:
        logger.info("Ray's dashboard: http://%s", context.dashboard_url)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _deaf_children(number: signal.Signals) -> Iterator[None]:
    """Have what starts in a `with` block not hear a signal, which may be sent to this process's whole group.

    Ray's processes would end of it, before a run that it asks to stop has saved. (It keeps SIGINT from them itself, as
    this is done; SIGTERM they need, to end in order.) This process hears it after the block.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _check_answers(address: str) -> None:
    """Raise UsageError where nobody listens at HOST:PORT, or will soon: Ray would look for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    deadline = time.monotonic() + _PATIENCE_S
    while error := _connection_error(host.strip("[]"), int(port)):
        may_pass = isinstance(error, (ConnectionError, TimeoutError))  # its head may be about to start
        if not may_pass or time.monotonic() > deadline:
            raise _no_cluster(address, error) from error
        time.sleep(0.5)


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({error}); unset it, and one starts here")


def _connection_error(host: str, port: int) -> Exception | None:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except (OSError, ValueError) as error:
        return error
    return None


def prepare_worker() -> None:
    """Quieten a worker process, and tell it which cluster it belongs to; Ray calls it as the process starts.

    Ray's own processes that ask the dashboard would else look for one on the machine, and give up where there are two,
    or where it is not in its usual place (2.60).
    """
    quieten_ray_workers()
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def _for_all_workers(address: str, dashboard: bool) -> dict[str, str]:
    """Return the environment that the workers of a joined cluster are to have from this process.

    Their own is that of the nodes, and that of a submitted job, whose variables may not be named again.
    """
    submitted = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    told = {name: os.environ[name] for name in _SWITCHES if name in os.environ and name not in submitted}
    host, _, port = address.rpartition(":")
    is_seen_by_all = port.isdigit() and "/" not in host and host not in ("localhost", "127.0.0.1")
    if dashboard or is_seen_by_all:
        # Else what asks the dashboard would look for one on its machine, where there may be another cluster's.
        told["RAY_ADDRESS"] = address
    return told


def node_resources() -> list[Mapping[str, float]]:
    """Return what each living node of the cluster has, in Ray's terms: `{"CPU": 16.0, "GPU": 2.0, ...}`."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def actor_resources(nodes: Sequence[Mapping[str, float]]) -> tuple[int, dict[str, float]]:
    """Return how many actors a pool on these nodes should have, and `num_cpus` and `num_gpus` of each.

    An actor a GPU; where there is none an actor a CPU of a single node, all together asking for one CPU less than it
    has, or whole CPUs of several nodes, but for one: some node must keep a whole CPU, or the tasks that read would
    never start.
    """
    if num_gpus := sum(int(node.get("GPU", 0)) for node in nodes):
        return num_gpus, {"num_cpus": 0, "num_gpus": 1}
    cpus = [num_cpus for node in nodes if (num_cpus := int(node.get("CPU", 0)))]
    if len(cpus) > 1:
        return sum(cpus) - 1, {"num_cpus": 1, "num_gpus": 0}
    num_cpus = max([1, *cpus])
    return num_cpus, {"num_cpus": (num_cpus - 1) / num_cpus, "num_gpus": 0}


def _usable_cpus() -> int:
    """Count the CPUs that this process is bound to, or that its container may use the time of, if that is less.

    Ray itself looks for the latter alone.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *_quota(Path("/sys/fs/cgroup"))])


def _quota(cgroup: Path) -> list[int]:
    """Return how many CPUs' time a control group may use, rounded up; nothing where it has no such bound."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # version 1
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return []
    return [max(1, math.ceil(int(quota) / int(period)))] if quota.strip() not in ("max", "-1") else []


def _quieten() -> None:
    """Turn off what Ray tells its own developers; jobs log their own progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Each of these two logs one line per process, at level WARNING, about a default or about what is set
    # above.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def _keep_token_private() -> None:
    """Make sure that only this user can read the token that guards the local cluster.

    A local cluster lets in whoever has the token in ~/.ray/auth_token, and Ray writes that file readable
    by all (2.60). It is made here first where it is absent. Nothing is done where the user chose another
    way in.
    """
    if any(name in os.environ for name in _TOKEN_VARIABLES):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def set_up_ray_train() -> None:
    """Set Ray Train up by its environment, for runs that are begun after that; what the user has set stays."""
    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(name, value)
