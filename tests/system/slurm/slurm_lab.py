"""A throw-away SLURM cluster of several machines on one Linux host; needs root, Debian's SLURM and munge.

Each machine has namespaces of its own for network, host name, processes, IPC and mounts: its own address on a bridge,
its own /tmp and /dev/shm. What lies elsewhere is shared, like a cluster's network file system. `login` runs slurmctld
and is where users submit from; `node1`, `node2`, ... run slurmd. Two ordinary users are known there, and nowhere else.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm_files import CGROUPS, NETWORK, NUM_NODES, USERS, address_of, write_files
from waiting import wait_until

ROOT = Path(__file__).parents[3]

BRIDGE = "crlab0"


def why_not() -> str | None:
    """Return why this machine cannot hold the lab, None if it can."""
    if os.geteuid() != 0:
        return "a SLURM of several machines takes root, for their namespaces"
    if not Path("/etc/debian_version").exists():
        return "the SLURM of the lab is Debian's"
    return None


def install() -> str | None:
    """Install Debian's SLURM where it is absent; its daemons are not left running. Takes 10 s, the first time.

    Returns what the package manager said where that failed.
    """
    wanted = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
    wanted |= {"curl": "curl", "ip": "iproute2", "setpriv": "util-linux", "ps": "procps"}
    packages = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not packages:
        return None
    script = f"apt-get update -qq && apt-get install -qq --yes --no-install-recommends {' '.join(packages)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else None


@dataclass(kw_only=True)
class Lab:
    """The cluster; `up` starts it, `down` ends it and all that runs on it."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="slurm-lab-", dir="/var/tmp")))
    machines: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    munged: subprocess.Popen[bytes] | None = None

    @property
    def has_cgroups(self) -> bool:
        """Tell whether SLURM can track and limit by cgroups, as sites have it; 22.05 does so by version 1 alone."""
        return all((CGROUPS / name / "cgroup.procs").exists() for name in ("freezer", "memory"))

    def home(self, user: str) -> Path:
        """Return a user's home folder."""
        return self.folder / "home" / user

    def up(self) -> None:
        """Start all machines and wait until every node is idle."""
        self.folder.chmod(0o755)
        write_files(self.folder, {user: self.home(user) for user in USERS}, has_cgroups=self.has_cgroups)
        self._start_munge()
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        self._start_machine("login", ["slurmctld", "-D", "-i"])
        for number in range(1, NUM_NODES + 1):
            self.start_node(f"node{number}")
        wait_until(lambda: self.node_states() == ["idle"] * NUM_NODES, 30, self._why_nodes_are_down)

    def down(self) -> None:
        """End everything and remove every trace."""
        for machine in self.machines.values():
            machine.kill()
            machine.wait()
        if self.munged is not None:
            self.munged.terminate()
            self.munged.wait()
        # The kernel takes its time over the links of namespaces that are gone.
        for link in (*(link_of(name) for name in self.machines), BRIDGE):
            subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)
        wait_until(self._remove_cgroups, 10, lambda: "cgroups of the lab's nodes are in use")
        shutil.rmtree(self.folder)

    def start_node(self, name: str) -> None:
        """Start a compute node, or start one anew that was killed."""
        spool = self.folder / "machines" / name / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        self._start_machine(name, ["slurmd", "-D", "-N", name])

    def kill_node(self, name: str) -> None:
        """Have a node crash, with all that runs there."""
        machine = self.machines.pop(name)
        machine.kill()
        machine.wait()
        subprocess.run(["ip", "link", "delete", link_of(name)], check=False, stderr=subprocess.DEVNULL)

    def node_states(self) -> list[str]:
        """Return each node's state, as sinfo names it."""
        return self.run("login", "root", "sinfo --noheader --Node --format=%t").stdout.split()

    def run(
        self, machine: str, user: str, script: str, *, folder: Path | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of bash on a machine as a user, with the environment of a fresh login, to its end."""
        done = subprocess.run(self.command(machine, user, script, folder), capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{script}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def command(self, machine: str, user: str, script: str, folder: Path | None = None) -> list[str]:
        """Return the command by which the host runs a line of bash on a machine."""
        number = USERS.get(user, 0)
        home = self.home(user) if number else Path("/root")
        as_user = [f"--reuid={number}", f"--regid={number}", "--clear-groups"] if number else ["--clear-groups"]
        environment = [
            f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "SHELL=/bin/bash", "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"SLURM_CONF={self.conf}",
        ]  # fmt: skip
        where = shlex.quote(str(folder or home))
        return [
            *("nsenter", "--all", f"--target={self._first_process(machine)}", "--"),
            *("setpriv", *as_user, "--", "env", "-i", *environment, "bash", "-c", f"cd {where} && {script}"),
        ]

    @property
    def conf(self) -> Path:
        """SLURM's settings."""
        return self.folder / "slurm.conf"

    def job_state(self, job: int) -> str:
        """Return a job's state, as scontrol names it."""
        text = self.run("login", "root", f"scontrol show job {job}", check=True).stdout
        return text.split("JobState=")[1].split()[0]

    def exit_code(self, job: int) -> tuple[int, int]:
        """Return the exit code of a job that has ended, and the signal that ended it."""
        text = self.run("login", "root", f"scontrol show job {job}", check=True).stdout
        code, _, number = text.split("ExitCode=")[1].split()[0].partition(":")
        return int(code), int(number)

    def processes(self, machine: str) -> list[str]:
        """Return the command lines of all users' processes on a machine, but for its own daemons."""
        lines = self.run(machine, "root", "ps -e -o user:20= -o args=").stdout.splitlines()
        return [line for line in lines if not line.startswith("root ")]

    def _first_process(self, machine: str) -> int:
        pid = self.machines[machine].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _start_machine(self, name: str, daemon: Sequence[str]) -> None:
        shared = [sys.prefix, sys.base_prefix, str(ROOT)]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LAB": str(self.folder),
            "SLURM_CONF": str(self.conf),
            "HIDDEN": " ".join(hidden_folders(shared)),
            "SHARED": " ".join(shared),
            "CGROUPS": "1" if self.has_cgroups else "",
        }
        with (self.folder / "log" / f"{name}.init").open("wb") as log:
            self.machines[name] = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL", "--"),  # nothing is left if the tests themselves are killed
                    *(
                        "unshare",
                        "--net",
                        "--uts",
                        "--ipc",
                        "--mount",
                        "--pid",
                        "--fork",
                        "--kill-child",
                        "--mount-proc",
                    ),
                    *("bash", str(Path(__file__).with_name("node_init.sh")), name, address_of(name), *daemon),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        process = self.machines[name].pid
        link = link_of(name)
        inside, outside = Path(f"/proc/{process}/ns/net"), Path("/proc/self/ns/net").readlink()
        wait_until(lambda: inside.readlink() != outside, 10, lambda: f"{name} did not start")
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(process))
        _run("ip", "link", "set", link, "master", BRIDGE, "up")

    def _start_munge(self) -> None:
        """Start a munge of the lab's own; SLURM's programs find it by its socket's default place."""
        for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge"):
            _run("install", "-d", "-o", "munge", "-g", "munge", "-m", "0755" if "run" in folder else "0700", folder)
        self.munged = subprocess.Popen(
            ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        answers = ["munge", "--no-input"]
        wait_until(
            lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0, 10, lambda: "no munge"
        )

    def _why_nodes_are_down(self) -> str:
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs)

    def _remove_cgroups(self) -> bool:
        """Remove what SLURM leaves of its cgroups; tell whether all could be."""
        folders = [path for top in CGROUPS.glob("*/slurm_node*") for path in (*top.rglob("*/"), top)]
        folders.sort(key=lambda path: -len(path.parts))
        return not folders or subprocess.run(["rmdir", *folders], capture_output=True, check=False).returncode == 0


def link_of(machine: str) -> str:
    """Return the name of a machine's link on the host's side."""
    return f"crlab-{machine}"


def hidden_folders(shared: Sequence[str]) -> list[str]:
    """Return the folders that each machine has to itself: /tmp, and those above `shared` that only root may enter."""
    folders = ["/tmp"]
    for path in map(Path, shared):
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if closed and str(closed[0]) not in folders:
            folders.append(str(closed[0]))
    return folders


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":  # for looking around by hand: the lab is there until Ctrl-C
    lab = Lab()
    try:
        lab.up()
        sys.stdout.write(f"{lab.folder}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        lab.down()
