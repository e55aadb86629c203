"""Builds the Dockerfile by buildah, where there is neither Docker nor a registry in reach: on Debian, as root.

The base image is made from Debian's packages. What pip is told on this machine (indexes, folders of wheels, the CA
bundle) reaches the build as volumes, never the image. Where PyTorch's index of CPU builds is out of reach, a folder
takes its place: torch's CPU wheel as pip finds it here, and torchvision's without its compiled operators, which are
built against CUDA, and which captions do not use.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
TORCH_INDEX = "https://download.pytorch.org/whl"
STAND_IN = {"TORCH_VERSION": "2.13.0", "TORCHVISION_VERSION": "0.28.0"}
"""Versions whose CPU wheels are looked for where the index is out of reach."""

_DEFINITIONS = """
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def reason_not_to_build() -> str | None:
    """Return what is missing for a build, None where nothing is."""
    if os.geteuid() != 0:
        return "buildah's chroot isolation needs root"
    missing = [tool for tool in ("buildah", "debootstrap", "unshare", "chroot") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Buildah:
    """buildah with a storage of its own below `folder`, of which nothing is left once it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._global = ["--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs"]

    def run(self, *arguments: str | Path) -> str:
        """Run a buildah command and return what it printed."""
        done = subprocess.run(["buildah", *self._global, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(map(str, arguments))}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make the image that the Dockerfile starts from, from Debian's own packages."""
        base = self.folder / "base"
        packages = "python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", base]
        subprocess.run([*command, "http://deb.debian.org/debian"], check=True, stdout=subprocess.DEVNULL)
        (base / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        container = self.run("from", "scratch")
        self.run("add", "--quiet", container, base, "/")
        self.run("commit", "--quiet", container, BASE)
        self.run("rm", container)
        shutil.rmtree(base)

    def build(self, tag: str, wheels: Path | None, **build_arguments: str) -> None:
        """Build the clone's Dockerfile. wheels: what takes the place of PyTorch's index, if anything must."""
        arguments = {**build_arguments, **({"TORCH_INDEX": f"file://{wheels}", **STAND_IN} if wheels else {})}
        volumes = [*pip_volumes(self.folder), *([f"{wheels}:{wheels}:ro"] if wheels else [])]
        self.run(
            *("bud", "--isolation", "chroot", "--format", "docker", "--tag", tag),  # OCI knows no HEALTHCHECK
            *(f"--volume={volume}" for volume in volumes),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            ROOT,
        )

    def inspect(self, tag: str) -> dict[str, Any]:
        """Return the image's configuration as Docker shows it."""
        image: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", tag))["Docker"]
        return image

    def close(self) -> None:
        """Delete all containers, images and files."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self.folder)


def pip_volumes(folder: Path) -> list[str]:
    """Return volumes that tell pip inside the build what it is told outside."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():  # those of the environment come first, and count
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))
    settings.pop("constraint", None)  # versions are the Dockerfile's business
    indexes = settings.get("extra-index-url", "").split()
    settings["extra-index-url"] = "\n    ".join([*indexes, settings.get("index-url", "https://pypi.org/simple")])
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    file = folder / "pip.conf"
    file.write_text("\n".join(lines) + "\n")
    words = " ".join(settings.values()).replace("file://", "").split()
    local = {Path(word).resolve() for word in words if word.startswith("/") and Path(word).exists()}
    local |= {path.parent for path in local if path.name == "simple"}  # its pages point to files beside it
    return [f"{file}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(local))]


def make_wheels(folder: Path) -> Path | None:
    """Return a folder that takes the place of PyTorch's index, None where that can be reached."""
    try:
        with urllib.request.urlopen(f"{TORCH_INDEX}/cpu/torch/", timeout=10):
            return None
    except OSError:
        pass
    index = folder / "wheels"
    for name, version, build in (
        ("torch", STAND_IN["TORCH_VERSION"], "+cpu"),
        ("torchvision", STAND_IN["TORCHVISION_VERSION"], ""),
    ):
        place = index / "cpu" / name
        place.mkdir(parents=True)
        # An own environment, so that the machine's constraints do not keep pip from this version.
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                f"--dest={place}",
                f"{name}=={version}{build}",
            ],
            env={**os.environ, "PIP_CONSTRAINT": os.devnull},
            check=True,
        )
        (wheel,) = place.iterdir()
        if name == "torchvision":
            wheel = _without_compiled_operators(wheel)
        (place / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    (index / "cpu" / "index.html").write_text('<a href="torch/">torch</a><a href="torchvision/">torchvision</a>')
    return index


def _without_compiled_operators(wheel: Path) -> Path:
    """Write a torchvision wheel as version +cpu that has only its Python code, and declares what that expects."""
    version = wheel.name.split("-")[1]
    own = wheel.with_name(wheel.name.replace(version, f"{version}+cpu"))
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(own, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith(".so") or ".libs/" in entry or entry.endswith("/RECORD"):
                continue
            if entry == "torchvision/extension.py":
                content += _DEFINITIONS.encode()
            if entry.endswith("/METADATA"):
                content = content.replace(f"Version: {version}\n".encode(), f"Version: {version}+cpu\n".encode())
            target.writestr(entry.replace(f"-{version}.dist-info", f"-{version}+cpu.dist-info"), content)
        target.writestr(f"torchvision-{version}+cpu.dist-info/RECORD", "")
    wheel.unlink()
    return own
