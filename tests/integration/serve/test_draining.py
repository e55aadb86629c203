"""Workers that end, and replicas that are scaled down, under the load of clients that hold their connections open.

As behind the load balancer of gcp/: a proxy on every worker, requests only to those whose health check says 200.
"""

import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from ray_machines import RayMachines
from serving import ROOT, Reply, ask, statuses
from waiting import wait_until

sys.path.insert(0, str(ROOT / "gcp"))
import manifests

pytestmark = pytest.mark.slow

CHECK_S, NUM_FAILURES = 1.0, 2
"""How often the load balancer looks, and after how many failures it leaves."""


@pytest.fixture
def machines(bundle_a: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayMachines]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("machines made of namespaces take root, and iproute2")
    machines = RayMachines(tmp_path_factory.mktemp("m"), {"CAPTION_RAY_BUNDLE": bundle_a})
    try:
        machines.start()
        yield machines
    finally:
        machines.end()


def config_for(machines: RayMachines, bundle: str, num_replicas: int) -> dict[str, Any]:
    """Return the cluster's Serve config, of a fixed size, for small machines."""
    config = manifests.serve_config()
    config["http_options"]["port"] = machines.serve_port
    (application,) = config["applications"]
    application["args"]["bundle"] = bundle
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"], deployment["ray_actor_options"]["memory"]
        deployment["num_replicas"] = num_replicas
    application["deployments"][1]["user_config"] |= {"bundle": bundle, "num_threads": 1, "max_batch_size": 4}
    return config


def balanced_load(
    addresses: list[str], port: int, picture: bytes, meanwhile: Callable[[], Awaitable[None]]
) -> tuple[list[Reply], list[tuple[float, frozenset[str]]]]:
    """Have three clients ask until `meanwhile` is done; return their replies, and when which workers were healthy.

    A request whose connection breaks is a reply of status -1.
    """
    healthy: list[tuple[float, frozenset[str]]] = []
    replies: list[Reply] = []

    async def is_healthy(session: aiohttp.ClientSession, address: str) -> bool:
        try:
            async with session.get(f"http://{address}:{port}/-/healthz", timeout=aiohttp.ClientTimeout(5)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def check(session: aiohttp.ClientSession) -> None:
        failures = dict.fromkeys(addresses, NUM_FAILURES)
        while True:
            for address in addresses:
                failures[address] = 0 if await is_healthy(session, address) else failures[address] + 1
            healthy.append((time.monotonic(), frozenset(a for a in addresses if failures[a] < NUM_FAILURES)))
            await asyncio.sleep(CHECK_S)

    async def client(session: aiohttp.ClientSession) -> None:
        while not done.is_set():
            address = random.choice(sorted(healthy[-1][1]) or addresses)  # as Google's does
            asked = time.monotonic()
            try:
                replies.append(await ask(session, f"http://{address}:{port}", picture))
            except (aiohttp.ClientError, TimeoutError) as error:
                broken = {"asked": asked, "answered": time.monotonic(), "headers": {}}
                replies.append(Reply(status=-1, body=f"{address}: {error!r}", **broken))

    done = asyncio.Event()

    async def run() -> None:
        async with aiohttp.ClientSession() as session, aiohttp.ClientSession() as checking:
            checker = asyncio.create_task(check(checking))
            while not healthy or not healthy[-1][1]:
                await asyncio.sleep(0.1)
            clients = [asyncio.create_task(client(session)) for _ in range(3)]
            await meanwhile()
            done.set()
            await asyncio.gather(*clients)
            checker.cancel()

    asyncio.run(run())
    return replies, healthy


def test_no_request_fails_while_a_worker_ends_and_while_replicas_become_fewer(
    machines: RayMachines, bundle_a: str, picture: bytes
) -> None:
    addresses = [machines.start_worker(number, num_cpus=3) for number in (2, 3, 4)]
    machines.deploy(config_for(machines, bundle_a, 2))
    before = machines.places("CaptionerReplica")
    assert len(set(before)) == 2, "never two of a kind on a worker"
    leaving = before[0]
    (spare,) = set(addresses) - set(before)
    seconds: dict[str, float] = {}
    ended: list[Any] = []

    async def meanwhile() -> None:
        await asyncio.sleep(3)
        seconds["told"] = time.monotonic()
        ended.append(await asyncio.to_thread(machines.run, leaving, ROOT / "gcp" / "drain_worker.sh", "45", "15"))
        seconds["ended"] = time.monotonic()
        machines.kill(leaving)
        await asyncio.to_thread(wait_until, lambda: len(machines.places("CaptionerReplica")) == 2, 60)
        seconds["fewer"] = time.monotonic()
        await asyncio.to_thread(machines.deploy, config_for(machines, bundle_a, 1))
        await asyncio.sleep(45)  # a proxy without replicas goes on for 30 s, for those who have not heard

    replies, healthy = balanced_load(addresses, machines.serve_port, picture, meanwhile)
    assert ended[0].returncode == 0, ended[0].stderr
    failed = [(reply.asked - seconds["told"], reply.status, reply.body) for reply in replies if reply.status != 200]
    assert failed == [], seconds
    assert statuses(replies)[200] > 100
    # Serve was told: the load balancer had left the worker, and its replicas were elsewhere, before it ended.
    assert 15 <= seconds["ended"] - seconds["told"] < 65
    last = [found for at, found in healthy if at < seconds["ended"]][-1]
    assert leaving not in last
    assert spare in last
    # And then there is a proxy where there is a replica, and nowhere else.
    assert healthy[-1][1] == {*machines.places("Ingress"), *machines.places("CaptionerReplica")}
