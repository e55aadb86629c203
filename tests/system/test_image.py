"""The Dockerfile, built and run for real: minutes, root, and two gigabytes of disk for its time."""

import json
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT
from image_build import STAND_IN, Buildah, make_wheels, reason_not_to_build
from image_run import Container

from caption_ray.bundle import read_manifest
from caption_ray.data.synthetic import write_synthetic_flickr8k

pytestmark = pytest.mark.slow

TAG = "caption-ray:test"
WORDS = {"a", "dog", "runs", "on", "grass", "red", "ball"}


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    if reason := reason_not_to_build():
        pytest.skip(reason)
    buildah = Buildah(tmp_path_factory.mktemp("image"))
    try:
        buildah.make_base()
        try:
            wheels = make_wheels(buildah.folder)
        except subprocess.CalledProcessError:
            pytest.skip("neither PyTorch's index nor a CPU wheel of torch is in reach")
        buildah.build(TAG, wheels, REVISION="0123abc")
        yield buildah
    finally:
        buildah.close()


@pytest.fixture(scope="module")
def config(buildah: Buildah) -> dict[str, Any]:
    settings: dict[str, Any] = buildah.inspect(TAG)["config"]
    return settings


@pytest.fixture(scope="module")
def files(buildah: Buildah) -> Path:
    return Path(buildah.run("mount", buildah.run("from", TAG)))


@pytest.fixture
def container(files: Path, config: dict[str, Any], tiny_bundle: Path, tmp_path: Path) -> Iterator[Container]:
    container = Container(files, config, tiny_bundle, tmp_path / "container.log")
    yield container
    container.kill()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_synthetic_flickr8k(tmp_path / "drawn", 20, seed=0)
    return min((tmp_path / "drawn" / "Images").iterdir())


def assert_captions(container: Container, bundle: Path, picture: Path) -> None:
    answer = container.curl("/v1/captions", "--data-binary", f"@{picture}", "--header", "Content-Type: image/jpeg")
    assert answer is not None, container.log.read_text()[-3000:]
    captions = json.loads(answer)
    assert captions["model_id"] == read_manifest(str(bundle)).digest
    assert set(captions["captions"][0]["text"].split()) <= WORDS
    page = container.curl("/")
    assert page is not None
    assert b"<title>" in page
    for asset in re.findall(r'(?:src|href)="(/?static/[^"]+)"', page.decode()):
        assert container.curl(f"/{asset.lstrip('/')}"), asset


def test_image_says_what_it_is(config: dict[str, Any]) -> None:
    assert config["User"] == "1000:1000"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"][:3] == ["python", "-m", "caption_ray.serve.local"]
    assert "--bundle" not in config["Cmd"]  # the variable names it
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    assert "/readyz" in " ".join(config["Healthcheck"]["Test"])
    environment = dict(variable.split("=", 1) for variable in config["Env"])
    assert environment["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    path = environment["PATH"].split(":")
    assert path[0] == "/opt/venv/bin"
    assert path[-1] == "/usr/local/nvidia/bin"


def test_image_holds_nothing_that_it_does_not_need(files: Path) -> None:
    packages = files / "opt/venv/lib/python3.11/site-packages"
    assert (packages / "torch").is_dir()
    names = {path.name for path in packages.rglob("*") if path.name.startswith(("lib", "nvidia", "triton"))}
    unwanted = re.compile(r"lib(cuda|cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|nvrtc|nvjitlink|torch_cuda).*")
    assert not [name for name in names if unwanted.match(name) or name in ("nvidia", "triton")]
    assert not list(packages.glob("pip*"))
    for tool in ("gcc", "cc", "g++", "make", "git"):
        assert not (files / "usr/bin" / tool).exists(), tool
    for cache in ("root/.cache", "home/ray/.cache", "var/lib/apt/lists"):
        assert not (files / cache).is_dir() or not list((files / cache).iterdir()), cache
    assert sorted(path.name for path in (files / "app").iterdir()) == [
        "LICENSE",
        "caption_ray",
        "jobs",
        "serve_config.yaml",
    ]
    assert list((files / "app" / "caption_ray").rglob("*.pyc")), "what cannot be written later is compiled in the image"


def test_every_package_has_the_version_that_is_pinned(files: Path) -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "gcp" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    arguments = dict(re.findall(r"(?m)^ARG (\w+)_VERSION=(.*)$", (ROOT / "Dockerfile").read_text()))
    pinned |= {normal(name): version for name, version in arguments.items()}
    assert {"torch", "torchvision", "ray"} <= pinned.keys()
    found = metadata.distributions(path=[str(files / "opt/venv/lib/python3.11/site-packages")])
    installed = {normal(package.metadata["Name"]): package.version for package in found}
    assert {"torch", "torchvision", "ray", "pillow", "starlette"} <= installed.keys()
    assert installed["torch"].endswith("+cpu")
    # What stands in where PyTorch's index is out of reach is another version of torch, and no other package.
    differing = {
        name: version for name, version in installed.items() if version.removesuffix("+cpu") != pinned.get(name)
    }
    stand_in = {"torch": f"{STAND_IN['TORCH_VERSION']}+cpu", "torchvision": f"{STAND_IN['TORCHVISION_VERSION']}+cpu"}
    assert differing in ({}, stand_in)


def test_container_serves_captions_and_the_page(
    container: Container, config: dict[str, Any], tiny_bundle: Path, picture: Path
) -> None:
    container.start()
    container.wait_for("/readyz")
    assert_captions(container, tiny_bundle, picture)
    assert container.run(*config["Healthcheck"]["Test"][1:]).returncode == 0
    assert container.run("id", "-u").stdout.strip() == "1000"
    decoding = "from caption_ray.model import compiled; print(compiled.load('BFLOAT16'))"
    assert "kernels/portable/" in container.run("python", "-c", decoding).stdout
    for path in ("/app/x", "/home/ray/x", "/bundle/x"):
        assert container.run("touch", path).returncode != 0, path
    assert container.run("touch", "/tmp/x").returncode == 0
    assert container.resident_bytes() < 1 << 30
    assert container.stop() in (0, 143)


def test_same_image_is_head_and_worker(container: Container, tiny_bundle: Path, picture: Path) -> None:
    """By the commands that KubeRay gives its pods, through a login shell as older versions of it do."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64, "HOME": "/tmp"}
    head = "ulimit -n 65536; ray start --head --num-cpus=0 --dashboard-host=0.0.0.0 --node-ip-address=127.0.0.1 --block"
    container.start("bash", "-lc", head, **settings)
    container.wait_for("/api/gcs_healthz", port=8265)  # the readiness probe of gcp/rayservice.yaml
    worker = "ray start --address=127.0.0.1:6379 --num-cpus=2 --dashboard-agent-listen-port=52366"
    started = container.run("bash", "-lc", worker, **settings)
    assert started.returncode == 0, started.stdout + started.stderr
    container.wait_for("/api/local_raylet_healthz", port=52366)  # the liveness probe, on a port of its own
    serve_config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    serve_config["http_options"]["host"] = "0.0.0.0"
    write = f"cat > /tmp/config.yaml <<'END'\n{yaml.safe_dump(serve_config)}\nEND\nserve deploy /tmp/config.yaml"
    deployed = container.run("bash", "-lc", write, **settings)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    container.wait_for("/readyz")
    assert_captions(container, tiny_bundle, picture)
    nodes = container.run("ray", "list", "nodes", "--format=json", **settings)
    cpus = sorted(node["resources_total"].get("CPU", 0) for node in json.loads(nodes.stdout))
    assert cpus == [0, 2]
    # Before a pod ends. Head and worker share this one: the first node that is found is told that it will be gone.
    drained = container.run("drain-worker", "2", "1", **settings)
    assert drained.returncode == 0, drained.stdout + drained.stderr
