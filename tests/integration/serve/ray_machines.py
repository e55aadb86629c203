"""A Ray cluster whose workers are machines of their own: namespaces for processes and network, addresses on a bridge.

So each has Serve's proxy on the same port, as pods have. The head is on the host. It takes root.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ports import free_port
from serving import APPLICATIONS, ROOT, ask_dashboard
from waiting import wait_until

BRIDGE, NETWORK = "crserve0", "10.78.0"
_INIT = """
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip link set lo up && ip address add "$ADDRESS/24" dev eth0 && ip link set eth0 up && exec "$@"
"""


class RayMachines:
    """A head and workers; `end` ends them and all that runs there."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._port, self._dashboard, self.serve_port = free_port(), free_port(), free_port()
        self._environment = {
            **os.environ,
            **environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            # As KubeRay tells its pods.
            "RAY_ADDRESS": f"{NETWORK}.1:{self._port}",
            "RAY_AUTH_MODE": "token",
        }
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._head: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the head."""
        for words in (f"add {BRIDGE} type bridge", f"set {BRIDGE} up"):
            subprocess.run(["ip", "link", *words.split()], check=True)
        subprocess.run(["ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE], check=True)
        command = [
            f"--port={self._port}",
            f"--dashboard-port={self._dashboard}",
            "--num-cpus=0",
            f"--temp-dir={self._folder}/r",
        ]
        head = {key: value for key, value in self._environment.items() if key != "RAY_ADDRESS"}
        self._head = self._start("head", [*self._start_command(f"{NETWORK}.1"), "--head", *command], head)
        wait_until(lambda: "Ray runtime started" in self.log("head"), 90, lambda: self.log("head"))

    def start_worker(self, number: int, num_cpus: int) -> str:
        """Start a worker and return its address."""
        address = f"{NETWORK}.{number}"
        apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", _INIT]
        command = [*self._start_command(address), f"--address={NETWORK}.1:{self._port}", f"--num-cpus={num_cpus}"]
        environment = {**self._environment, "ADDRESS": address}
        worker = self.workers[address] = self._start(address, [*apart, "bash", *command], environment)
        inside, outside = Path(f"/proc/{worker.pid}/ns/net"), Path("/proc/self/ns/net").readlink()
        wait_until(lambda: inside.readlink() != outside, 10)
        link = f"crserve-{number}"
        peer = ["peer", "name", "eth0", "netns", str(worker.pid)]
        subprocess.run(["ip", "link", "add", link, "type", "veth", *peer], check=True)
        subprocess.run(["ip", "link", "set", link, "master", BRIDGE, "up"], check=True)
        wait_until(lambda: "Ray runtime started" in self.log(address), 90, lambda: self.log(address))
        return address

    def run(self, address: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command on a worker, as `kubectl exec` would."""
        pid = self.workers[address].pid
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        enter = ["nsenter", f"--target={first}", "--net", "--mount", "--pid"]
        return subprocess.run(
            [*enter, *command], env=self._environment, capture_output=True, text=True, check=False, timeout=120
        )

    def kill(self, address: str) -> None:
        """End a worker as Kubernetes ends a pod whose time is up."""
        worker = self.workers.pop(address)
        worker.kill()
        worker.wait()

    def deploy(self, config: dict[str, Any]) -> None:
        """Do what the operator does with a serveConfigV2, and wait until it is so."""
        self._ask("PUT", config)
        wait_until(lambda: self.application()["status"] == "RUNNING", 180, lambda: json.dumps(self.application()))

    def application(self) -> dict[str, Any]:
        """Return what Serve says of the application."""
        application: dict[str, Any] = self._ask("GET")["applications"].get("captions", {"status": "absent"})
        return application

    def places(self, deployment: str) -> list[str]:
        """Return the addresses of the workers that have a running replica of a deployment."""
        replicas = self.application()["deployments"][deployment]["replicas"]
        return sorted(replica["node_ip"] for replica in replicas if replica["state"] == "RUNNING")

    def log(self, name: str) -> str:
        """Return what the head or a worker has printed."""
        return (self._folder / f"{name}.log").read_text()

    def end(self) -> None:
        """End everything, the head last."""
        for address in list(self.workers):
            self.kill(address)
        if self._head is not None:
            with suppress(psutil.NoSuchProcess):
                for member in psutil.Process(self._head.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
            self._head.kill()
            self._head.wait()
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)

    def _start_command(self, address: str) -> list[str]:
        return [self._ray, "start", "--block", f"--node-ip-address={address}", f"--object-store-memory={100 << 20}"]

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _ask(self, method: str, body: object = None) -> Any:
        return ask_dashboard(f"http://127.0.0.1:{self._dashboard}", method, APPLICATIONS, body)
