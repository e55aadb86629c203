"""How a job ends: by a signal before its time is up, by its command, by a death; and what it leaves behind."""

from pathlib import Path

import pytest
from slurm_lab import Lab
from slurm_user import User, scores

pytestmark = pytest.mark.usefixtures("no_cluster")

UNTIL_ASKED = "bash -c 'until [[ -e $CAPTION_RAY_STOP_FILE ]]; do sleep 0.2; done; exit 75'"
"""Does as training does when it is asked to stop, and stands for it where that is quicker."""


def test_a_run_that_is_stopped_and_queued_again_goes_on_as_if_nothing_had_been(
    alice: User, undisturbed: Path, train: str
) -> None:
    """The signal is the one that SLURM sends by --signal; the time it comes is the test's."""
    job = alice.sbatch(f"{train} --training.epochs 3 --name requeued")
    alice.wait_for_log(job, "epoch 1 of 3")
    alice.signal(job, "USR1", "--batch")
    assert alice.wait_for_end(job) == ("COMPLETED", 0)
    log = alice.log(job)
    assert "the time is up and work is left" in log
    assert "restarts: 1" in log
    assert "going on after step" in log
    assert scores(undisturbed) == scores(undisturbed.parents[1] / "requeued" / "bundle")
    alice.leaves_nothing()


@pytest.mark.slow
def test_nodes_that_are_taken_back_have_training_save_first(alice: User, lab: Lab) -> None:
    """As SLURM preempts a job that has a grace time: by SIGTERM to its steps, and not to its script."""
    if not lab.has_cgroups:
        pytest.skip("without cgroups of version 1 the lab's SLURM signals every process of Ray by itself")
    job = alice.sbatch(UNTIL_ASKED)
    alice.wait_for_log(job, "running: ")
    alice.signal(job, "TERM")
    alice.wait_for_log(job, "restarts: 1")
    log = alice.log(job)
    assert "training is told to save and stop" in log
    assert "lost" not in log
    alice.type(f"scancel {job}", check=True)
    alice.wait_for_end(job)
    alice.leaves_nothing()


@pytest.mark.slow
def test_a_command_that_is_stopped_is_not_put_back(alice: User) -> None:
    """Nor does it take submissions: those are for clusters that wait for some."""
    job = alice.sbatch(UNTIL_ASKED)
    alice.cluster(job)
    refused = alice.type("slurm/submit.sh true")
    assert (refused.returncode, "no cluster is up" in refused.stderr) == (2, True)
    # The time limit comes on top of it.
    alice.type(f"slurm/stop.sh {job} & sleep 0.4; scancel --batch --signal=USR1 {job}; wait $!", check=True)
    assert alice.wait_for_end(job) == ("FAILED", 75)
    alice.leaves_nothing()


def test_a_job_without_time_to_begin_says_so(alice: User) -> None:
    job = alice.sbatch("sleep 600")
    alice.wait_for_log(job, f"job {job}")
    alice.signal(job, "USR1", "--batch")
    assert alice.wait_for_end(job) == ("FAILED", 1)
    assert "ask for more --time" in alice.log(job)
    alice.leaves_nothing()


def test_scancel_while_it_starts_leaves_nothing(alice: User) -> None:
    job = alice.sbatch("sleep 600")
    alice.wait_for_log(job, f"job {job}")
    alice.type(f"scancel {job}", check=True)
    assert alice.wait_for_end(job)[0] == "CANCELLED"
    alice.leaves_nothing()


@pytest.mark.parametrize("process", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_killed_head_ends_the_job_as_failed(alice: User, process: str) -> None:
    kill_ray(alice, "node1", process, "lost the head on node1")


def test_a_killed_worker_ends_the_job_as_failed(alice: User) -> None:
    kill_ray(alice, "node2", "raylet", "lost a worker node")


@pytest.mark.slow
def test_a_worker_that_ends_in_order_is_missed_too(alice: User) -> None:
    """`ray start --block` takes that for what was wanted, and stays."""
    kill_ray(alice, "node2", "raylet", "lost a worker node", signal="TERM")


def kill_ray(user: User, node: str, process: str, reason: str, signal: str = "KILL") -> None:
    job = user.sbatch("sleep 600")
    user.wait_for_log(job, "running: sleep 600")
    user.lab.run(node, "root", f"pkill --signal {signal} --exact --euid {user.name} {process}", check=True)
    assert user.wait_for_end(job) == ("FAILED", 1)
    assert reason in user.log(job)
    user.leaves_nothing()


def test_a_command_that_fails_ends_the_job_with_its_exit_code(alice: User) -> None:
    """However the job was asked for; and it clears away what a machine that crashed has left of another one.

    But not what is of another SLURM, whose jobs may well run, where both have the same home folder.
    """
    for number in (999998, 999999):
        alice.type(f"mkdir -p ~/.caption_ray/clusters/{number}", check=True)
        alice.type(f"cd ~/.caption_ray/clusters && echo secret | tee {number}/token > {number}.env", check=True)
    alice.type("echo elsewhere > ~/.caption_ray/clusters/999998/slurm_cluster", check=True)
    asked = 'python -c "import ray; ray.init(); print(ray.cluster_resources())"'
    job = alice.sbatch(f"bash -c '{asked}; mktemp; exit 9'", "--gpus=p100:4 --export=SLURM_CONF")
    assert alice.wait_for_end(job) == ("FAILED", 9)
    assert "'GPU': 4.0" in alice.log(job)
    kept = alice.type("cd ~/.caption_ray/clusters && cat 999998/token 999998.env && rm -r 999998*", check=True).stdout
    assert kept.split() == ["secret", "secret"]
    alice.leaves_nothing()
