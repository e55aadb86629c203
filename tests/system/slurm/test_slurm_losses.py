"""What takes minutes: the real time limit, and machines that die."""

import re
from pathlib import Path

import pytest
from slurm_user import User
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_cluster")]


def test_the_time_limit_has_training_save_and_the_job_put_back(alice: User, train: str, undisturbed: Path) -> None:
    job = alice.sbatch(f"{train} --training.epochs 500 --name timed", "--time=4 --signal=B:USR1@60")
    alice.wait_for_log(job, "restarts: 1", 360)
    alice.wait_for_log(job, "going on after step", 120)
    alice.type(f"scancel {job}", check=True)
    alice.wait_for_end(job)
    ((step, epoch),) = re.findall(r"going on after step (\d+) of epoch (\d+)", alice.log(job))
    assert (int(epoch), int(step)) > (1, 0)
    alice.leaves_nothing()


def test_a_cluster_whose_time_is_up_is_gone(alice: User) -> None:
    job = alice.sbatch("sleep 600", "--time=2 --signal=B:USR1@1")
    alice.wait_for_log(job, "running: ")
    assert alice.wait_for_end(job, 240)[0] == "TIMEOUT"
    alice.leaves_nothing()


def test_training_that_cannot_save_in_time_is_put_back_all_the_same(alice: User) -> None:
    """The command stands for a step that takes longer than the time that is left."""
    command = "bash -c 'touch $CAPTION_RAY_STOP_FILE.heeded; [[ $SLURM_RESTART_COUNT == 1 ]] || sleep 600'"
    job = alice.sbatch(command, "--time=3 --signal=B:USR1@60")
    assert alice.wait_for_end(job, 360) == ("COMPLETED", 0)
    assert "training has not saved in time" in alice.log(job)
    alice.leaves_nothing()


def test_training_goes_on_with_the_workers_that_are_left(alice: User, train: str, undisturbed: Path) -> None:
    command = f"{train} --min-workers 1 --training.epochs 30 --name fewer"
    job = alice.sbatch(command, "--no-kill --export=ALL,CAPTION_RAY_LOST_NODE=continue")
    alice.wait_for_log(job, "epoch 2 of 30")
    alice.lab.kill_node("node2")
    try:
        assert alice.wait_for_end(job, 240) == ("COMPLETED", 0)
    finally:
        alice.lab.start_node("node2")
    log = alice.log(job)
    assert "lost a worker node; going on without" in log
    assert "1 worker(s) on cpu" in log
    assert log.count("going on after epoch") == 1
    assert "epoch 30 of 30" in log
    alice.leaves_nothing()


def test_a_job_that_loses_its_node_waits_for_another_and_goes_on(alice: User, train: str, undisturbed: Path) -> None:
    wait_until(lambda: alice.lab.node_states() == ["idle", "idle"], 60, lambda: str(alice.lab.node_states()))
    job = alice.sbatch(f"{train} --training.epochs 30 --name waited")
    alice.wait_for_log(job, "epoch 2 of 30")
    alice.lab.kill_node("node2")
    wait_until(lambda: alice.lab.job_state(job) == "PENDING", 120, lambda: alice.log(job))
    alice.lab.start_node("node2")
    assert alice.wait_for_end(job, 240) == ("COMPLETED", 0)
    log = alice.log(job)
    assert "restarts: 1" in log
    assert "going on after epoch" in log
    alice.leaves_nothing()


def test_a_job_whose_head_crashes_starts_again_with_another_token(alice: User) -> None:
    wait_until(lambda: alice.lab.node_states() == ["idle", "idle"], 60, lambda: str(alice.lab.node_states()))
    job = alice.sbatch("bash -c '[[ $SLURM_RESTART_COUNT == 1 ]] || sleep 600'")
    alice.wait_for_log(job, "running: ")
    token = alice.token(job)
    alice.lab.kill_node("node1")
    wait_until(lambda: alice.lab.job_state(job) == "PENDING", 120, lambda: alice.log(job))
    alice.lab.start_node("node1")
    alice.wait_for_log(job, "restarts: 1", 120)
    assert not (alice.clusters / str(job) / "token").exists() or alice.token(job) != token
    assert alice.wait_for_end(job) == ("COMPLETED", 0)
    alice.leaves_nothing()
