"""Runs that were killed, by worker or whole, and runs that have ended: the same command again."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from another_driver import at_work
from killing import kill_with_family
from small import EXPERIMENT, numbers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from caption_ray.errors import RunError, WorkLeftError
from caption_ray.lock import LOCK_NAME
from caption_ray.train.run_folder import stopped_checkpoint
from caption_ray.train.state import Position
from caption_ray.train.trainer import TrainRequest, train

pytestmark = pytest.mark.usefixtures("local_ray")

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train writes it when a checkpoint counts: after the first epoch, the first time."""


def test_the_same_command_again_says_that_the_run_is_finished(
    request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    again = train(request_two)
    assert again.was_finished
    assert numbers(again.metrics) == numbers(undisturbed)


def test_other_settings_under_the_same_name_are_refused(
    request_two: TrainRequest, undisturbed: dict[str, object]
) -> None:
    changed = EXPERIMENT.model_copy(update={"model": EXPERIMENT.model.model_copy(update={"hidden_size": 25})})
    with pytest.raises(RunError, match=r"model\.hidden_size: 24 then, 25 now"):
        train(replace(request_two, experiment=changed))


def test_second_driver_of_a_run_is_refused(request_two: TrainRequest) -> None:
    request = replace(request_two, name="taken")
    lock = Path(request.run_folder, LOCK_NAME)
    with at_work(lock), pytest.raises(RunError, match="process 7 on elsewhere works on this run"):
        train(request)
    assert {path.name for path in lock.parent.iterdir()} == {LOCK_NAME}  # not even what it would have trained


@pytest.mark.parametrize("cut", [False, True], ids=["before its bundle", "and while its checkpoints were listed"])
def test_a_run_killed_after_its_last_epoch_still_gets_its_bundle(
    request_two: TrainRequest, undisturbed: dict[str, object], tmp_path: Path, cut: bool
) -> None:
    shutil.copytree(request_two.run_folder, tmp_path / "undisturbed")
    shutil.rmtree(tmp_path / "undisturbed" / "bundle")
    if cut:
        snapshot = tmp_path / "undisturbed" / SNAPSHOT
        snapshot.write_bytes(snapshot.read_bytes()[:100])
    again = train(replace(request_two, storage=str(tmp_path)))
    assert not again.was_finished
    assert again.metrics == undisturbed
    earlier = Path(request_two.run_folder, "bundle", "model.safetensors").read_bytes()
    assert Path(again.bundle, "model.safetensors").read_bytes() == earlier


def test_a_killed_worker_costs_an_epoch_and_changes_nothing(
    request_two: TrainRequest, undisturbed: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    request = replace(request_two, name="killed")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(Path(request.run_folder), killed))
    killer.start()
    outcome = train(request)
    killer.join()
    assert len(killed) == 1
    before, after = epochs_of_each_start(Path(request.run_folder))
    assert before[0] == 1
    assert after in ([2, 3], [3])  # neither from the first epoch again, nor after the last one
    assert numbers(outcome.metrics) == numbers(undisturbed)
    assert re.search(r"worker\(s\) \d.* failed: .*worker process has died", capfd.readouterr().err)


def epochs_of_each_start(run_folder: Path) -> list[list[int]]:
    """Return the epochs that ended between each start of the workers and their end, by any cause.

    Each start writes an event file of its own, whose name begins with the time.
    """
    epochs = []
    for path in sorted((run_folder / "tensorboard").glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path)).Reload()
        points = events.Scalars("loss/train") if "loss/train" in events.Tags()["scalars"] else []
        epochs.append([point.step for point in points])
    return epochs


def kill_a_worker(run_folder: Path, killed: list[int]) -> None:
    """Kill one of this process's training workers by SIGKILL once the first epoch's checkpoint is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if (run_folder / SNAPSHOT).exists():
            time.sleep(0.1)  # epochs are short: the kill must not come after the last one
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("ray::RayTrain"):
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                        return
        time.sleep(0.05)


def test_a_killed_run_goes_on_where_it_stopped(
    request_two: TrainRequest, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """The whole job dies by SIGKILL in its second epoch; the same command goes on and reaches the same result."""
    settings = tmp_path / "request.json"
    settings.write_text(
        json.dumps(
            {
                "experiment": EXPERIMENT.model_dump(mode="json"),
                "data": request_two.data,
                "features": request_two.features,
                "storage": str(tmp_path),
            }
        )
    )
    command = [sys.executable, str(Path(__file__).with_name("run_training.py")), str(settings)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(tmp_path / "job" / SNAPSHOT, first)
    time.sleep(0.1)
    kill_with_family(first)
    assert not (tmp_path / "job" / "bundle").exists()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    assert "going on with run job" in second.stderr
    assert "going on after epoch" in second.stderr
    before, after = epochs_of_each_start(tmp_path / "job")
    assert before[0] == 1
    assert after in ([2, 3], [3])
    assert numbers(json.loads(second.stdout.splitlines()[-1])) == numbers(undisturbed)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.05)


def test_a_run_that_was_asked_to_stop_goes_on_in_the_midst_of_its_epoch(
    request_two: TrainRequest, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """No step is done twice: epochs have 82, and the one that was cut short goes on after those that it had done.

    That features are read from copies on the node's own disk changes nothing either.
    """
    for attempt in range(3):  # the file may come between two epochs
        request = replace(request_two, name=f"stopped-{attempt}", stage=str(tmp_path / "disk"))
        position = stopped_at(request)
        if position.num_steps > 0:
            break
    assert 0 < position.num_steps < 82
    assert position.num_captions == 20 * position.num_steps
    assert position.num_workers == 2
    outcome = train(request)
    assert numbers(outcome.metrics) == numbers(undisturbed)
    assert not Path(request.run_folder, "stopped").exists()
    copies = {path.name.split("-", 1)[1] for path in (tmp_path / "disk").glob("*.parquet")}
    assert copies == {"train-00000.parquet", "dev-00000.parquet"}


def stopped_at(request: TrainRequest) -> Position:
    """Ask a run to stop in its second epoch, and return where it was."""
    folder = Path(request.run_folder)
    asking = threading.Thread(target=ask_to_stop, args=(folder,))
    asking.start()
    with pytest.raises(WorkLeftError, match=r"did so in epoch \d of 3; the same command goes on from there"):
        train(request)
    asking.join()
    assert not (folder / "stop").exists()
    stopped = stopped_checkpoint(str(folder))
    assert stopped is not None
    assert stopped.position is not None
    return stopped.position


def ask_to_stop(run_folder: Path) -> None:
    """Make the file that asks for it shortly after the first epoch's checkpoint is there."""
    deadline = time.monotonic() + 240
    while not (run_folder / "epoch_0001" / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    (run_folder / "stop").touch()
