"""How a job ends: by a signal before its time is up, by its command, by a death; and what it leaves behind."""

from pathlib import Path

import pytest
from slurm_user import User, scores

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.mark.slow
def test_a_run_that_is_stopped_and_put_back_goes_on_as_if_nothing_had_been(
    alice: User, undisturbed: Path, train: str
) -> None:
    """The signal is the one that SLURM sends by --signal; the time it comes is the test's."""
    job = alice.sbatch(f"{train} --training.epochs 5 --name requeued")
    alice.wait_for_log(job, "epoch 1 of 5")
    alice.type(f"scancel --batch --signal=USR1 {job}", check=True)
    assert alice.wait_for_end(job, 180) == ("COMPLETED", 0)
    log = alice.log(job)
    assert "the time is up and work is left" in log
    assert "restarts: 1" in log
    assert "going on after step" in log
    assert scores(undisturbed) == scores(undisturbed.parents[1] / "requeued" / "bundle")
    alice.leaves_nothing()


@pytest.mark.parametrize("process", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_killed_head_ends_the_job_as_failed(alice: User, process: str) -> None:
    kill_ray(alice, "node1", process, "lost the head on node1")


def test_a_killed_worker_ends_the_job_as_failed(alice: User) -> None:
    kill_ray(alice, "node2", "raylet", "lost a worker node")


def kill_ray(user: User, node: str, process: str, reason: str) -> None:
    job = user.sbatch("sleep 600")
    user.wait_for_log(job, "running: sleep 600")
    user.lab.run(node, "root", f"pkill --signal KILL --exact --euid {user.name} {process}", check=True)
    assert user.wait_for_end(job, 60) == ("FAILED", 1)
    assert reason in user.log(job)
    user.leaves_nothing()


def test_a_command_that_fails_ends_the_job_with_its_exit_code(alice: User) -> None:
    job = alice.sbatch("bash -c 'exit 9'")
    assert alice.wait_for_end(job) == ("FAILED", 9)
    alice.leaves_nothing()
