"""A user of the lab: a home folder with a checkout in it, jobs, and what they leave behind."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from slurm_lab import ROOT, USERS, Lab
from waiting import wait_until

REQUEST = "--nodes=2 --cpus-per-task=3 --gpus-per-node=p100:2 --mem=6G --time=60"
"""What the tests ask for; on each of the two nodes there is room for two of it."""

BOBS_DISK = "/tmp/disk-whose-name-leaves-no-room-for-sockets"
"""Where one of the users keeps what belongs to a node alone."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who works on the login machine."""

    lab: Lab
    name: str

    @property
    def checkout(self) -> Path:
        """The folder that commands are typed in."""
        return self.lab.home(self.name) / "caption_ray"

    @property
    def clusters(self) -> Path:
        """Where the running clusters are written down."""
        return self.lab.home(self.name) / ".caption_ray" / "clusters"

    def set_up(self, site: str = "") -> None:
        """Copy the checkout, and write the site file, of which a line keeps workers from crowding the CPUs."""
        for part in ("caption_ray", "jobs", "slurm"):
            shutil.copytree(ROOT / part, self.checkout / part, ignore=shutil.ignore_patterns("__pycache__", "site.env"))
        shutil.copy(ROOT / ".gitignore", self.checkout)
        site += f"\nCAPTION_RAY_VENV={sys.prefix}\nOMP_WAIT_POLICY=passive\nPYTHONPATH={self.checkout}\n"
        (self.checkout / "slurm" / "site.env").write_text(site)
        for path in [self.checkout, *self.checkout.rglob("*")]:
            shutil.chown(path, USERS[self.name], USERS[self.name])

    def type(self, script: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a line of bash on the login machine, in the checkout."""
        return self.lab.run("login", self.name, script, folder=self.checkout, check=check)

    def sbatch(self, command: str = "", options: str = "", script: str = "slurm/ray_cluster.sh") -> int:
        """Submit the cluster's script, and return the job's number."""
        done = self.type(f"sbatch --parsable {REQUEST} {options} {script} {command}", check=True)
        return int(done.stdout)

    def signal(self, job: int, name: str, to: str = "") -> None:
        """Send a job's steps a signal, or its script where `to` is --batch."""
        self.type(f"scancel --signal={name} {to} {job}", check=True)

    def log(self, job: int) -> str:
        """Return what a job has written so far."""
        path = self.checkout / f"caption_ray-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, job: int, text: str, seconds: float = 240) -> None:
        """Wait until a text is in a job's log."""
        wait_until(
            lambda: text in self.log(job) or self.is_over(job), seconds, lambda: f"no {text!r} in\n{self.log(job)}"
        )
        assert text in self.log(job), f"job {job} has ended without {text!r}:\n{self.log(job)}"

    def cluster(self, job: int) -> dict[str, str]:
        """Wait for a job's cluster, and return what is written down of it."""
        path = self.clusters / f"{job}.env"
        wait_until(
            lambda: path.exists() or self.is_over(job), 240, lambda: f"cluster {job} is not up:\n{self.log(job)}"
        )
        assert path.exists(), f"cluster {job} has ended:\n{self.log(job)}"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return dict(line.split("=", 1) for line in lines)

    def in_cluster(self, job: int, script: str) -> subprocess.CompletedProcess[str]:
        """Run a line of bash with the environment that a cluster's file gives, and the programs of Ray."""
        return self.type(f"set -a; . {self.clusters}/{job}.env; set +a; . {sys.prefix}/bin/activate; {script}")

    def status_code(self, job: int, path: str, header: str = "") -> int:
        """Return the HTTP status code of a request to a cluster's dashboard."""
        address = self.cluster(job)["RAY_API_SERVER_ADDRESS"]
        header = f"-H {shlex.quote(header)}" if header else ""
        return int(self.type(f"curl -s -o /dev/null -w '%{{http_code}}' {header} {address}{path}", check=True).stdout)

    def token(self, job: int) -> str:
        """Return a cluster's token."""
        return Path(self.cluster(job)["RAY_AUTH_TOKEN_PATH"]).read_text()

    def is_over(self, job: int) -> bool:
        """Tell whether a job has ended, however."""
        return self.lab.job_state(job) in (
            *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"),
            *("NODE_FAIL", "OUT_OF_MEMORY"),
        )

    def wait_for_end(self, job: int, seconds: float = 240) -> tuple[str, int]:
        """Wait until a job is over; return its state and its exit code, having printed its log."""
        wait_until(lambda: self.is_over(job), seconds, lambda: f"job {job} goes on:\n{self.log(job)[-3000:]}")
        sys.stdout.write(self.log(job))
        return self.lab.job_state(job), self.lab.exit_code(job)[0]

    def left_behind(self) -> list[str]:
        """Return the processes and temporary files of this user on every node, and what is written of clusters."""
        left = []
        for node in (name for name in self.lab.machines if name != "login"):
            listing = self.lab.run(
                node, "root", f"ps -u {self.name} -o pid=,args=; find /tmp /dev/shm -user {self.name}"
            )
            left += [f"{node}: {line}" for line in listing.stdout.splitlines()]
        return left + [str(path) for path in self.clusters.glob("**/*")]

    def leaves_nothing(self) -> None:
        """Hold that nothing is left behind, within the seconds that SLURM takes to end a job's last processes."""
        wait_until(lambda: not self.left_behind(), 40, lambda: "left behind: " + "\n".join(self.left_behind()))


def scores(bundle: Path) -> dict[str, object]:
    """Return a bundle's metrics but for those that depend on the clock."""
    metrics = json.loads((bundle / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if "per_s" not in name and "seconds" not in name}
