import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_lab
from slurm_lab import Lab
from slurm_user import BOBS_DISK, User

from caption_ray.data.synthetic import write_synthetic_flickr8k

FIRST_RUN = """set -e
python jobs/prepare_data.py --source ~/drawn --output ~/data --min-count 1
python jobs/cache_features.py --data ~/data --output ~/features --encoder.backbone resnet18 --encoder.weights none \
    --encoder.image-size 64
cp "$(find ~/drawn/Images -name "*.jpg" | sort | head -n 1)" ~/photo.jpg
rm -r ~/drawn
{train} --training.epochs 3 --name undisturbed
python jobs/caption.py --bundle ~/runs/undisturbed/bundle ~/photo.jpg
"""


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A SLURM of a login machine and two nodes; skipped, with the reason, where there can be none."""
    if (reason := slurm_lab.why_not()) is not None:
        pytest.skip(reason)
    if (reason := slurm_lab.install()) is not None:
        pytest.skip(f"SLURM could not be installed: {reason}")
    with Path("/run/lock/caption-ray-slurm-lab").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one bridge, and one munge
        lab = Lab()
        try:
            lab.up()
            lab.run("node1", "alice", f"{sys.prefix}/bin/python -c 'import ray'", check=True)
            yield lab
        finally:
            lab.down()


@pytest.fixture(scope="session")
def alice(lab: Lab) -> User:
    user = User(lab=lab, name="alice")
    user.set_up()
    return user


@pytest.fixture(scope="session")
def bob(lab: Lab) -> User:
    """He has disks with a long name on the nodes, and a proxy that answers nobody."""
    user = User(lab=lab, name="bob")
    user.set_up(f"CAPTION_RAY_TMP={BOBS_DISK}\nhttp_proxy=http://10.77.0.1:9")
    for node in ("node1", "node2"):
        lab.run(node, "root", f"mkdir -m 1777 {BOBS_DISK}", check=True)
    return user


@pytest.fixture(scope="session")
def cluster(alice: User) -> int:
    """Alice's cluster of two nodes, up; the tests of one file end it."""
    job = alice.sbatch()
    alice.cluster(job)
    return job


@pytest.fixture(scope="session")
def train(lab: Lab) -> str:
    """The command that trains the quick start's model on two workers, but for the run's name and its epochs."""
    return (
        "python jobs/train.py quickstart --data ~/data --features ~/features --storage ~/runs --device cpu "
        "--num-workers 2 --cpus-per-worker 2"
    )


@pytest.fixture(scope="session")
def undisturbed(alice: User, cluster: int, train: str) -> Path:
    """The bundle of a run on pictures that jobs on the cluster have prepared, all submitted from the login machine.

    Training has nothing but what was prepared: the pictures themselves are gone.
    """
    home = alice.lab.home("alice")
    write_synthetic_flickr8k(home / "drawn", 400, seed=0)
    alice.lab.run("login", "root", f"chown -R alice {home}/drawn", check=True)
    (home / "first_run.sh").write_text(FIRST_RUN.format(train=train))
    done = alice.type(f"slurm/submit.sh --cluster={cluster} bash ~/first_run.sh")
    (home / "first_run.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home / "runs" / "undisturbed" / "bundle"


@pytest.fixture
def no_cluster(alice: User) -> None:
    """Have what earlier tests left up of Alice's end."""
    alice.type("scancel --user=alice", check=True)
    alice.leaves_nothing()
