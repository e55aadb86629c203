"""`serve run` as a process of its own, asked over HTTP; and a load of clients that notes what each was answered."""

import asyncio
import contextlib
import copy
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import yaml
from waiting import wait_until

ROOT = Path(__file__).parents[3]
APPLICATIONS = "/api/serve/applications/"
BYTES = {"Content-Type": "image/png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer: when it was asked for and given (seconds on the monotonic clock), and what it said."""

    asked: float
    answered: float
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def seconds(self) -> float:
        return self.answered - self.asked


class Service:
    """A running `serve run`. Deploys further configs, and looks at the processes behind it."""

    def __init__(self, config: dict[str, Any], folder: Path, environment: dict[str, str]) -> None:
        self.config = copy.deepcopy(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.config["http_options"]["port"] = self.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        file = folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("serve"), "run", file],
                cwd=folder,
                env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def wait_ready(self, timeout_s: float = 120) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                return bool(self.get("/readyz"))
            except (OSError, ValueError):
                return False

        wait_until(is_ready, timeout_s, self.log.read_text)

    def stop(self, timeout_s: float = 60) -> int:
        """Press Ctrl-C, as a person would, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """End it as a person would, and by force where that takes long; tests/system/test_serve.py tests Ctrl-C."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop(10)
        self.kill()

    def kill(self) -> None:
        """End all of it, whatever state it is in."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def deploy(self, *, wait: bool = True, **captioner: Any) -> None:
        """Do what `serve deploy` does, with other options of the captioner's deployment than it was started with."""
        config = copy.deepcopy(self.config)
        config["applications"][0]["deployments"][1].update(captioner)
        self._dashboard("PUT", config)
        if wait:
            wait_until(lambda: self._application()["status"] == "RUNNING", 60, lambda: str(self._application()))

    def replicas(self, deployment: str) -> dict[str, int]:
        """Return the running replicas of a deployment: id and process id."""
        found = self._application()["deployments"][deployment]["replicas"]
        return {replica["replica_id"]: replica["pid"] for replica in found if replica["state"] == "RUNNING"}

    def private_bytes(self) -> int:
        """Return the memory of what all that is sent goes through, Ray's proxy or HAProxy, and of all replicas.

        Pages that they share are left out: they are those of Ray's object store, which has a size of its own, and which
        each process maps bit by bit as large bodies pass through it.
        """
        children = psutil.Process(self.process.pid).children(recursive=True)
        proxies = [child.pid for child in children if _is_proxy(child)]
        assert len(proxies) == 1
        proxies += [child.pid for child in children if child.is_running() and child.name() == "haproxy"]
        pids = [*proxies, *self.replicas("Ingress").values(), *self.replicas("CaptionerReplica").values()]
        found = [psutil.Process(pid).memory_info() for pid in pids]
        return sum(memory.rss - memory.shared for memory in found)

    def metrics_address(self) -> str:
        """Return where Ray's metrics agent of this node is scraped."""
        (node,) = ask_dashboard(self._dashboard_address(), "GET", "/nodes?view=summary")["data"]["summary"]
        return f"{node['raylet']['nodeManagerAddress']}:{node['raylet']['metricsExportPort']}"

    def _application(self) -> dict[str, Any]:
        application: dict[str, Any] = self._dashboard("GET")["applications"]["captions"]
        return application

    def _dashboard(self, method: str, body: object = None) -> Any:
        return ask_dashboard(self._dashboard_address(), method, APPLICATIONS, body)

    def _dashboard_address(self) -> str:
        (address,) = set(re.findall(r"View the dashboard at \S*?(http://127\.0\.0\.1:\d+)", self.log.read_text()))
        return str(address)


def ask_dashboard(address: str, method: str, path: str, body: object = None) -> Any:
    """Return what a dashboard answers, of the cluster that the tests' token is for."""
    request = urllib.request.Request(
        f"{address}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def _is_proxy(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline()[:1]).startswith("ray::ProxyActor")
    return False


async def ask(session: aiohttp.ClientSession, url: str, picture: bytes, in_batches: int = 0) -> Reply:
    """Send a picture, or as many in a batch."""
    asked = time.monotonic()
    path, data, headers = "", picture, BYTES
    if in_batches:
        form = aiohttp.FormData([("pictures", io.BytesIO(picture)) for _ in range(in_batches)])
        path, data, headers = "/batch", form(), {}
    async with session.post(f"{url}/v1/captions{path}", data=data, headers=headers) as answer:
        content = await answer.read()
    is_json = answer.content_type == "application/json"
    return Reply(
        asked=asked,
        answered=time.monotonic(),
        status=answer.status,
        headers={name.lower(): value for name, value in answer.headers.items()},
        body=json.loads(content) if is_json else content,
    )


def load(
    url: str,
    picture: bytes,
    num_clients: int,
    seconds: float,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    in_batches: int = 0,
) -> list[Reply]:
    """Have clients ask one after another for so long, each as soon as it is answered; one told to wait waits a little.

    meanwhile: done beside that; they go on until a second after it has ended.  They hold no connections of their own
    open in between, so that none is closed under a request.
    """

    is_done = meanwhile is None

    async def aside() -> None:
        nonlocal is_done
        try:
            if meanwhile is not None:
                await meanwhile()
                await asyncio.sleep(1)
        finally:
            is_done = True

    async def client(session: aiohttp.ClientSession, end: float, replies: list[Reply]) -> None:
        while time.monotonic() < end or not is_done:
            replies.append(await ask(session, url, picture, in_batches))
            if replies[-1].status != 200:
                await asyncio.sleep(0.1)

    async def run() -> list[Reply]:
        replies: list[Reply] = []
        end = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(90)) as session:
            tasks = [client(session, end, replies) for _ in range(num_clients)]
            await asyncio.gather(*tasks, aside())
        return replies

    return asyncio.run(run())


def statuses(replies: list[Reply]) -> Counter[int]:
    return Counter(reply.status for reply in replies)


def median_s(replies: list[Reply]) -> float:
    return median(reply.seconds for reply in replies if reply.status == 200)
