"""`serve run serve_config.yaml`, as people start it, from a clone and with a bundle."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from commands import ROOT

from caption_ray.bundle import read_manifest
from caption_ray.data.synthetic import write_synthetic_flickr8k

SERVE = Path(sys.executable).with_name("serve")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The clone's config as it is, on a port that is free."""
    content = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        content["http_options"]["port"] = probe.getsockname()[1]
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(config: Path, bundle: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Run `serve run` in its own process group, its output beside its config. variables: of its environment."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CAPTION_RAY_BUNDLE": str(bundle),
        "RAY_AUTH_TOKEN": "5" * 64,
        **variables,
    }
    environment.pop("RAY_ADDRESS", None)
    with config.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [SERVE, "run", config],
            cwd=config.parent,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )


def heed_interrupts() -> None:
    """Undo what a shell does to the jobs of its background, where the tests themselves may run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def deploy_as_the_readme_has_it(config: Path) -> None:
    command = "RAY_AUTH_MODE=token serve deploy serve_config.yaml"
    assert command in (ROOT / "README.md").read_text()
    (dashboard,) = set(
        re.findall(r"View the dashboard at \S*?(http://\S+:\d+)", config.with_suffix(".log").read_text())
    )
    environment = {**os.environ, "PATH": f"{SERVE.parent}:{os.environ['PATH']}", "RAY_AUTH_TOKEN": "5" * 64}
    done = subprocess.run(
        ["bash", "-c", f"{command} --address {dashboard}"],
        cwd=config.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def processes_of_group(group: int) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pgid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.split(maxsplit=1)[0] == str(group)]


def test_serve_run_answers_until_interrupted(config: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    write_synthetic_flickr8k(tmp_path / "drawn", 20, seed=0)
    picture = min((tmp_path / "drawn" / "Images").iterdir())
    url = f"http://127.0.0.1:{yaml.safe_load(config.read_text())['http_options']['port']}"
    process = start(config, tiny_bundle, CAPTION_RAY_API_KEYS="Zyxwv,Utsrq")
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=10):
                    break
            except OSError:
                assert process.poll() is None, config.with_suffix(".log").read_text()[-3000:]
                assert time.monotonic() < deadline, config.with_suffix(".log").read_text()[-3000:]
                time.sleep(0.3)
        for given in ({}, {"X-API-Key": "Zyxw"}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(f"{url}/v1/model", headers=given), timeout=30)
            assert refused.value.code == 401
            assert json.load(refused.value)["error"]["code"] == "unauthorized"
        asking = urllib.request.Request(f"{url}/v1/model", headers={"Authorization": "Bearer Utsrq"})
        with urllib.request.urlopen(asking, timeout=30) as answer:
            model = json.load(answer)
        assert model["id"] == read_manifest(str(tiny_bundle)).digest
        assert model["name"] == "tiny"
        request = urllib.request.Request(
            f"{url}/v1/captions?beam_width=2&num_captions=2",
            data=picture.read_bytes(),
            headers={"Content-Type": "image/jpeg", "X-Request-ID": "asked-for-by-a-test", "X-API-Key": "Zyxwv"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            captions = json.load(answer)
            assert answer.headers.get_all("X-Request-ID") == ["asked-for-by-a-test"]
        assert captions["model_id"] == model["id"]
        assert len(captions["captions"]) == 2
        assert set(captions["captions"][0]["text"].split()) <= {"a", "dog", "runs", "on", "grass", "red", "ball"}
        deploy_as_the_readme_has_it(config)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        log = config.with_suffix(".log").read_text()
        assert "shutting down" in log
        assert not re.search("Zyxw|Utsrq", log)
        # Ray itself says this of its controller when it is shut down in the midst of a call (2.60).
        log = re.sub(r".*ServeController\.graceful_shutdown failed\..*", "", log)
        assert "Traceback" not in log
        deadline = time.monotonic() + 20
        while left := processes_of_group(process.pid):  # Ray's last ones end a moment after their parent
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        end(process)


@pytest.mark.parametrize(
    ("is_there", "messages"),
    [
        (False, ["no manifest.json: not a bundle", "the quick start in runs/quickstart/bundle"]),
        pytest.param(True, ["model.safetensors: missing; copy the bundle again, whole"], marks=pytest.mark.slow),
    ],
)
def test_bundle_that_cannot_be_loaded_is_named(
    config: Path, tiny_bundle: Path, tmp_path: Path, is_there: bool, messages: list[str]
) -> None:
    bundle = tmp_path / "bundle"
    if is_there:
        shutil.copytree(tiny_bundle, bundle)
        (bundle / "model.safetensors").unlink()
    process = start(config, bundle)
    try:
        deadline = time.monotonic() + 60
        while messages[0] not in (log := config.with_suffix(".log").read_text()):
            assert process.poll() is None, log[-3000:]
            assert time.monotonic() < deadline, log[-3000:]
            time.sleep(0.3)
        assert all(message in log for message in messages)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        end(process)
