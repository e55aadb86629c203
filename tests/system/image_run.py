"""Starts an image's files as Docker would start the image, where Docker itself cannot run.

As `docker run --read-only --tmpfs /tmp --network none -v BUNDLE:/bundle:ro`: namespaces of its own for processes,
mounts and network, a root that cannot be written to, and the image's own user, environment and command.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_APART = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child")
_START = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount --bind "$BUNDLE" "$ROOT/bundle"
mount -o remount,bind,ro "$ROOT/bundle"
mount -o remount,bind,ro "$ROOT"
ip link set lo up
exec "$@"
"""


class Container:
    """A running container. root: the image's files, mounted; config: the image's configuration, as Docker shows it."""

    def __init__(self, root: Path, config: dict[str, Any], bundle: Path, log: Path) -> None:
        self._root, self._config, self.log = root, config, log
        (root / "bundle").mkdir(exist_ok=True)
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")  # as Docker does
        self._environment = {"ROOT": str(root), "BUNDLE": str(bundle), "PATH": os.environ["PATH"]}

    def start(self, *command: str, **environment: str) -> None:
        """Start the image's entry point with a command, by default the image's own."""
        inside = [*self._config["Entrypoint"], *(command or self._config["Cmd"])]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*_APART, "bash", "-c", _START, "bash", *self._chroot(inside, environment)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        # It is up when its first process runs in the image; until then it is a shell that makes ready.
        self._wait(lambda: self._children() != [] and self.run("true").returncode == 0, 30)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, beside what was started."""
        enter = ["nsenter", "--target", str(self._first()), "--mount", "--pid", "--net"]
        return subprocess.run(
            [*enter, *self._chroot(command, environment)], capture_output=True, text=True, check=False
        )

    def curl(self, path: str, *options: str, port: int = 8000) -> bytes | None:
        """Ask it over HTTP; None where that fails."""
        enter = ["nsenter", "--target", str(self._first()), "--net"]
        command = [*enter, "curl", "--silent", "--fail", "--max-time", "60", *options, f"http://127.0.0.1:{port}{path}"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def wait_for(self, path: str, port: int = 8000, timeout_s: float = 120) -> None:
        """Wait until a path is answered."""
        self._wait(lambda: self.curl(path, port=port) is not None, timeout_s)

    def stop(self, timeout_s: float = 30) -> int:
        """Ask it to end, as `docker stop` does, and return the exit code."""
        os.kill(self._first(), signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """End all of it, whatever state it is in.

        By its first process, with which its namespace ends: `--kill-child` no longer does that once the image's user
        has taken over from root.
        """
        if self.process.poll() is None:
            for first in self._children():
                os.kill(first, signal.SIGKILL)
            self.process.kill()
            self.process.wait()

    def resident_bytes(self) -> int:
        """Return the memory of its processes together, shared pages counted once in each."""
        statuses = self.run("sh", "-c", "cat /proc/[0-9]*/status").stdout.splitlines()
        return 1024 * sum(int(line.split()[1]) for line in statuses if line.startswith("VmRSS:"))

    def _first(self) -> int:
        """Return the process that is number 1 inside."""
        return self._children()[0]

    def _children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _wait(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and not holds():
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            time.sleep(0.3)
        assert self.process.poll() is None, self.log.read_text()[-5000:]

    def _chroot(self, command: tuple[str, ...] | list[str], environment: dict[str, str]) -> list[str]:
        settings = [*self._config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        place = f"cd {shlex.quote(self._config['WorkingDir'])} && exec {shlex.join(command)}"
        user = f"--userspec={self._config['User']}"
        return ["chroot", user, str(self._root), "env", "-i", *settings, "sh", "-c", place]
