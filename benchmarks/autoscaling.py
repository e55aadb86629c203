"""Autoscaling, seen: one client, then sixteen, then one again, and how many replicas and nodes answer them.

The nodes are processes of this machine, started and ended by Ray's own autoscaler (v2) through its fake provider: what
is seen is when Serve and the autoscaler decide, and that no request fails meanwhile, but not how long a cloud takes for
a machine. The deployments are those of gcp/rayservice.yaml, but for targets and delays, which are shorter here.

    python benchmarks/autoscaling.py --bundle runs/quickstart/bundle --picture photo.jpg --plot autoscaling.png

The plot needs matplotlib.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import ray
from fake_cluster import fake_cluster
from ray import serve

from caption_ray.serve.captioner import CaptionerReplica
from caption_ray.serve.ingress import Ingress
from caption_ray.serve.schemas import Limits

sys.path.insert(0, str(Path(__file__).parents[1] / "gcp"))
import manifests

PHASES = ((1, 10.0), (16, 45.0), (1, 55.0))
"""Clients, each asking again as soon as it is answered, and for how long, seconds."""

IDLE_NODE_S = 9.0
DELAYS = {"upscale_delay_s": 2, "downscale_delay_s": 5, "look_back_period_s": 11}
TARGETS = {"Ingress": 8, "CaptionerReplica": 5}
MAX_REPLICAS = 3
PORT = 8000


def main() -> None:
    """Start, measure, print one JSON line, draw, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    os.environ.update(
        RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S="1",
        RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S="1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
        OMP_NUM_THREADS="1",
    )
    with fake_cluster(worker_cpus=3, max_workers=MAX_REPLICAS, idle_s=IDLE_NODE_S) as address:
        ray.init(address, logging_level="WARNING", log_to_driver=False)
        _deploy(str(Path(asked.bundle).absolute()))
        samples, answers = asyncio.run(_measure(asked.picture.read_bytes()))
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(_summary(samples, answers)))
    if asked.plot:
        _draw(samples, answers, asked.plot)


def _deploy(bundle: str) -> None:
    """Run the application with the options of the cluster's Serve config, and one replica of each to begin with."""
    options: dict[str, dict[str, Any]] = {}
    for deployment in manifests.serve_config()["applications"][0]["deployments"]:
        name = deployment.pop("name")
        del deployment["ray_actor_options"]["memory"]  # the fake provider's nodes have CPUs alone
        bounds = {"min_replicas": 1, "max_replicas": MAX_REPLICAS, "target_ongoing_requests": TARGETS[name]}
        options[name] = {**deployment, "autoscaling_config": {**deployment["autoscaling_config"], **bounds, **DELAYS}}
    options["CaptionerReplica"]["user_config"] = {"bundle": bundle, "num_threads": 1, "max_batch_size": 4}
    captioner = CaptionerReplica.options(**options["CaptionerReplica"]).bind(bundle)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 60})
    serve.run(
        Ingress.options(**options["Ingress"]).bind(captioner, Limits(), keys_expected=False),
        name="captions",
        route_prefix="/",
    )


async def _measure(picture: bytes) -> tuple[list[dict[str, float]], list[tuple[float, float, int]]]:
    """Return samples of what there is, and each answer's time, duration (seconds) and status; -1 where none came."""
    started, clients = time.monotonic(), 0
    samples: list[dict[str, float]] = []
    answers: list[tuple[float, float, int]] = []

    async def client(session: aiohttp.ClientSession, until: float) -> None:
        while time.monotonic() < until:
            asked = time.monotonic()
            try:
                async with session.post(f"http://127.0.0.1:{PORT}/v1/captions", data=picture) as answer:
                    await answer.read()
                    status = answer.status
            except (aiohttp.ClientError, asyncio.TimeoutError):
                status = -1
            answers.append((asked - started, time.monotonic() - asked, status))

    async def watch() -> None:
        while True:
            there = await asyncio.to_thread(_what_there_is)
            samples.append({"at_s": time.monotonic() - started, "clients": clients, **there})
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    headers = {"Content-Type": "image/jpeg"}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        for clients, seconds in PHASES:
            until = time.monotonic() + seconds
            await asyncio.gather(*(client(session, until) for _ in range(clients)))
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher  # raises what ended it before
    return samples, answers


def _what_there_is() -> dict[str, float]:
    deployments = serve.status().applications["captions"].deployments
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    running = {name: deployments[name].replica_states.get("RUNNING", 0) for name in TARGETS}
    return {"nodes": nodes, "captioners": running["CaptionerReplica"], "ingresses": running["Ingress"]}


def _summary(samples: list[dict[str, float]], answers: list[tuple[float, float, int]]) -> dict[str, object]:
    """Return counts, and when after the load's rise and fall each number was at its most, and at its least again."""
    rise, fall = PHASES[0][1], PHASES[0][1] + PHASES[1][1]
    summary: dict[str, object] = {
        "answers": len(answers),
        "statuses": {str(status): count for status, count in Counter(status for *_, status in answers).items()},
        "slowest_s": round(max(seconds for _, seconds, _ in answers), 2),
    }
    for name in ("captioners", "nodes"):
        most = max(sample[name] for sample in samples)
        summary[name] = {
            "least": samples[0][name],
            "most": most,
            "most_after_s": _first(samples, rise, lambda sample, n=name, m=most: sample[n] == m),
            "least_after_s": _first(samples, fall, lambda sample, n=name: sample[n] == samples[0][n]),
        }
    return summary


def _first(samples: list[dict[str, float]], since_s: float, holds: Any) -> float | None:
    for sample in samples:
        if sample["at_s"] >= since_s and holds(sample):
            return round(sample["at_s"] - since_s, 1)
    return None


def _draw(samples: list[dict[str, float]], answers: list[tuple[float, float, int]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (load, there, rate) = pyplot.subplots(3, 1, sharex=True, figsize=(8, 5.5), height_ratios=[1, 2, 2])
    at = [sample["at_s"] for sample in samples]
    load.step(at, [sample["clients"] for sample in samples], where="post", color="0.3")
    load.set_ylabel("clients")
    for name, label, style in (("captioners", "replicas of the captioner", "-"), ("nodes", "nodes", "--")):
        there.step(at, [sample[name] for sample in samples], style, where="post", label=label)
    there.set_ylim(0, MAX_REPLICAS + 0.5)
    there.legend(loc="upper right")
    seconds = range(int(at[-1]) + 1)
    counts = Counter(int(asked + taken) for asked, taken, status in answers if status == 200)
    rate.plot(seconds, [counts.get(second, 0) for second in seconds], color="0.3")
    rate.set_ylabel("captions/s")
    failed = [asked + taken for asked, taken, status in answers if status != 200]
    rate.set_title(f"{len(answers)} requests, {len(failed)} failed", fontsize=9)
    rate.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
