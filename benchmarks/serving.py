"""The service against a tutorial's Flask app, LitServe and the bare model: `python benchmarks/serving.py --pictures D`.

All caption the same JPEG files with the same weights of ResNet50's sizes (`serving_bundle.py`), by beam search as the
bundle says. The service is `serve run serve_config.yaml` as it stands, on a GPU with the line that gives a replica one;
`flask_app.py`, `litserve_app.py` and `bare_model.py` say what the others are. Each is started, asked for every picture
once, loaded with 1, 4 and 16 clients in turn, and stopped before the next one starts; so for each round. The service is
measured with Ray's own proxy, with HAProxy in its place, which `RAY_SERVE_ENABLE_HA_PROXY=1` asks Ray for, and without
Ray, as one process.

The load is wrk's (Debian's package `wrk`): clients that ask again as soon as they are answered, in one thread of C and
Lua, which takes a hundredth of what answering takes, of cores that all share.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from compare import report
from serving_bundle import make_bundle

HERE = Path(__file__).parent
CLIENTS = (1, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A service: how it is started, where and how it is asked, and what is in its answer."""

    command: Sequence[str]
    path: str
    content_type: str
    bodies: Sequence[Path]
    variables: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def caption(answer: dict) -> str:
        """Return the best caption in an answer."""
        return answer["caption"] if "caption" in answer else answer["captions"][0]["text"]


@contextlib.contextmanager
def running(server: Server, port: int, log: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start a server, wait until it answers, and yield its URL; end it by Ctrl-C."""
    with log.open("w") as file:
        process = subprocess.Popen(
            server.command,
            env={**environment, **server.variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}{server.path}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                ask(server, url, server.bodies[0])
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(server.command)} does not answer:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(server: Server, url: str, body: Path) -> str:
    """Return the caption of one picture."""
    request = urllib.request.Request(url, body.read_bytes(), {"Content-Type": server.content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return server.caption(json.load(answer))


def load(server: Server, url: str, clients: int, seconds: float) -> dict[str, float]:
    """Return what wrk's script says of so many clients."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "post_pictures.lua")]
    command += [url, "--", server.content_type, *map(str, server.bodies)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} of {found['answers']} requests to {url} failed")
    return {"per_s": found["answers"] / found["seconds"], "median_ms": found["median_ms"], "p95_ms": found["p95_ms"]}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def servers(folder: Path, bundle: str, pictures: Sequence[Path], port: int) -> dict[str, Server]:
    """Return all that are measured, by name; writes what they need into the folder."""
    config = yaml.safe_load((HERE.parent / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    if torch.cuda.is_available():
        (application,) = config["applications"]
        (replica,) = (each for each in application["deployments"] if each["name"] == "CaptionerReplica")
        replica["ray_actor_options"]["num_gpus"] = 1
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    as_json = []
    for picture in pictures:
        as_json.append(folder / f"{picture.stem}.json")
        as_json[-1].write_text(json.dumps({"image": b64encode(picture.read_bytes()).decode()}))
    options = ["--bundle", bundle, "--port", str(port)]
    serve = str(Path(sys.executable).with_name("serve"))
    ours = Server(
        command=[serve, "run", str(folder / "serve_config.yaml")],
        path="/v1/captions",
        content_type="image/jpeg",
        bodies=pictures,
    )
    return {
        "caption_ray": ours,
        "caption_ray_haproxy": replace(ours, variables={"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
        "caption_ray_local": replace(ours, command=[sys.executable, "-m", "caption_ray.serve.local", *options]),
        "flask": Server(
            command=[sys.executable, str(HERE / "flask_app.py"), *options],
            path="/caption",
            content_type="image/jpeg",
            bodies=pictures,
        ),
        "litserve": Server(
            command=[sys.executable, str(HERE / "litserve_app.py"), *options],
            path="/predict",
            content_type="application/json",
            bodies=as_json,
        ),
    }


def ceiling(bundle: str, pictures: Sequence[Path], seconds: float, environment: dict[str, str]) -> dict:
    """Return what `bare_model.py` says."""
    command = [sys.executable, str(HERE / "bare_model.py"), "--bundle", bundle, "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, *map(str, pictures)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all in turn and print a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of JPEG files, such as Flickr8k's Images")
    parser.add_argument("--num-pictures", type=int, default=32)
    parser.add_argument("--preset", default="palmetto", help="whose decoder")
    parser.add_argument("--rounds", type=int, default=3, help="times that all are measured in turn")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # What a shell starts in the background ignores Ctrl-C, and so would all that is started from here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pictures = sorted(arguments.pictures.glob("*.jpg"))[: arguments.num_pictures]
    if not pictures:
        parser.error(f"--pictures: no *.jpg in {arguments.pictures}; name a folder of JPEG files")
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder, bundle = Path(name), str(Path(name) / "bundle")
        make_bundle(bundle, arguments.preset, [picture.read_bytes() for picture in pictures], arguments.seed)
        environment = {**os.environ, "CAPTION_RAY_BUNDLE": bundle, "PYTHONPATH": str(HERE.parent)}
        rounds, captions = [], {}
        for _ in range(arguments.rounds):
            bare = ceiling(bundle, pictures, arguments.seconds, environment)
            captions["bare"] = bare.pop("captions")
            found: dict[str, dict] = {"bare": bare}
            for name, server in servers(folder, bundle, pictures, port).items():
                with running(server, port, folder / f"{name}.log", environment) as url:
                    captions[name] = [ask(server, url, body) for body in server.bodies]
                    found[name] = {str(n): load(server, url, n, arguments.seconds) for n in CLIENTS}
            rounds.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
    report(summary(rounds, captions))


def summary(rounds: Sequence[dict[str, dict]], captions: dict[str, list[str]]) -> dict[str, object]:
    """Return medians over rounds, medians of the ratios within a round, and how many captions are the bare model's."""

    def median(*path: str) -> float:
        return statistics.median(_at(found, path) for found in rounds)

    def ratio(over: tuple[str, ...], under: tuple[str, ...]) -> float:
        return statistics.median(_at(found, over) / _at(found, under) for found in rounds)

    names = [name for name in rounds[0] if name != "bare"]
    most = str(CLIENTS[-1])
    print("| clients | " + " | ".join(f"{name}: captions/s, median, p95 ms" for name in names) + " |", file=sys.stderr)
    for n in map(str, CLIENTS):
        cells = [[median(name, n, figure) for figure in ("per_s", "median_ms", "p95_ms")] for name in names]
        print(f"| {n} | " + " | ".join(f"{a:.1f}, {b:.0f}, {c:.0f}" for a, b, c in cells) + " |", file=sys.stderr)
    return {
        "bare": {figure: median("bare", figure) for figure in rounds[0]["bare"]},
        "captions_equal_to_the_bare_models": {
            name: sum(a == b for a, b in zip(captions[name], captions["bare"], strict=True)) for name in names
        },
        "num_pictures": len(captions["bare"]),
        **{
            ours: {
                "throughput_over_flask": ratio((ours, most, "per_s"), ("flask", most, "per_s")),
                "throughput_over_litserve": ratio((ours, most, "per_s"), ("litserve", most, "per_s")),
                "share_of_ceiling": ratio((ours, most, "per_s"), ("bare", "together_per_s")),
                "share_of_ceiling_side_by_side": ratio((ours, most, "per_s"), ("bare", "side_by_side_per_s")),
                "latency_over_flask": ratio((ours, "1", "median_ms"), ("flask", "1", "median_ms")),
                "latency_over_litserve": ratio((ours, "1", "median_ms"), ("litserve", "1", "median_ms")),
            }
            for ours in names
            if ours.startswith("caption_ray")
        },
    }


def _at(found: dict, path: Sequence[str]) -> float:
    for key in path:
        found = found[key]
    return float(found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
