"""Real sweeps on drawn pictures, to which things happen: a killed worker, NaN, SIGKILL, Ctrl-C."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from killing import kill_with_family
from ports import free_port
from sweeping import ROOT, SANE_RATES, Sweep, family, has_epochs, is_of
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2

from caption_ray.bundle import load_bundle
from caption_ray.tune.records import TrialRecord, write_trial


def test_sweep_survives_a_killed_worker_a_failing_trial_and_sigkill(data: str, features: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, data, features)
    process = sweep.start()
    # The first trial's worker dies after its first epoch; the whole sweep does, once the second trial has failed.
    sweep.wait_until(process, lambda trials: has_epochs(trials, 1, 1))
    (worker,) = [
        child for child in family(process) if child.name().startswith("ray::RayTrain") and is_of(child, "0001")
    ]
    worker.kill()
    sweep.wait_until(process, lambda trials: 2 in trials and trials[2].status == "failed")
    kill_with_family(process)
    before = sweep.trials()
    assert (before[2].num_retries, before[2].epochs, before[2].has_diverged) == (1, (), True)
    assert "the gradient is not finite" in (before[2].error or "")

    process = sweep.start()
    stdout, _ = process.communicate(timeout=240)
    log = sweep.log.read_text()
    assert process.returncode == 0, log[-4000:]
    assert "going on with sweep sweep: " in log
    trials, result = sweep.trials(), json.loads(stdout.splitlines()[-1])
    assert result["trials"]["failed"] == 1
    assert result["trials"]["finished"] + result["trials"]["stopped"] == 2
    assert all(trials[number] == one for number, one in before.items() if one.is_over)
    assert [one.num_retries for one in trials.values()] == [1, 1, 0]
    assert len(list((sweep.folder / "trials" / "0001" / "tensorboard").iterdir())) >= 2  # a file for each start
    for number in (1, 3):
        assert [epoch["epoch"] for epoch in trials[number].epochs] == [*range(1, len(trials[number].epochs) + 1)]
    assert trials[1].settings["model.embedding_size"] == 24  # the preset, as the command changed it
    check_what_is_left(sweep, trials, result)
    # Once more, there is nothing to do, and the bundle that others may be reading is left alone.
    made_at = (sweep.folder / "best" / "lineage.json").stat().st_mtime_ns
    process = sweep.start()
    stdout, _ = process.communicate(timeout=120)
    assert json.loads(stdout.splitlines()[-1]) == result
    assert (sweep.folder / "best" / "lineage.json").stat().st_mtime_ns == made_at


@pytest.mark.slow
def test_trials_cut_off_after_their_last_epochs_end_as_they_would_have(
    data: str, features: str, tmp_path: Path
) -> None:
    """One has its bundle still to write, one was not yet recorded as finished: neither has a score left to report."""
    sweep = Sweep(tmp_path, data, features)
    sweep.command += [*SANE_RATES, "--num-trials", "2", "--training.epochs", "1"]
    process = sweep.start()
    process.communicate(timeout=240)
    assert process.returncode == 0, sweep.log.read_text()[-4000:]
    ended = sweep.trials()
    assert [one.status for one in ended.values()] == ["finished", "finished"]
    for one in ended.values():
        write_trial(str(sweep.folder), one.model_copy(update={"status": "running"}))
    bundle = sweep.folder / "trials" / "0001" / "bundle"
    shutil.rmtree(bundle)
    process = sweep.start()
    process.communicate(timeout=240)
    assert process.returncode == 0, sweep.log.read_text()[-4000:]
    again = sweep.trials()
    assert [one.status for one in again.values()] == ["finished", "finished"]
    assert [one.epochs for one in again.values()] == [one.epochs for one in ended.values()]
    assert load_bundle(str(bundle)).metrics["epoch"] == 1


@pytest.mark.slow
def test_command_of_the_winner_trains_it_again(data: str, features: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, data, features)
    sweep.command += ["--num-trials", "1"]
    stdout, _ = sweep.start().communicate(timeout=240)
    result = json.loads(stdout.splitlines()[-1])
    command = [sys.executable, *shlex.split(result["command"])[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    again = json.loads(done.stdout.splitlines()[-1])
    # Sums over another number of threads are rounded otherwise.
    assert (again["epoch"], again["cider"]) == (result["epoch"], pytest.approx(result["cider"], abs=0.03))


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(data: str, features: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, data, features)
    sweep.command += [*SANE_RATES, "--stopping.grace-epochs", "2"]  # else the second may stop the first
    process = sweep.start()
    sweep.wait_until(process, lambda trials: has_epochs(trials, 1, 1))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that the job has started
    process.communicate(timeout=120)
    log = sweep.log.read_text()
    assert process.returncode == 130, log[-4000:]
    assert "interrupted: sweep sweep: " in log
    check_cut_off(sweep, log)
    process = sweep.start()
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == 0, sweep.log.read_text()[-4000:]
    check_what_is_left(sweep, sweep.trials(), json.loads(stdout.splitlines()[-1]))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", pytest.param("file", marks=pytest.mark.slow)])
def test_sweep_that_is_asked_to_stop_says_that_work_is_left(data: str, features: str, tmp_path: Path, how: str) -> None:
    """By code 75 a cluster's job is put back into the queue when its time is up."""
    sweep = Sweep(tmp_path, data, features)
    sweep.command += [*SANE_RATES, "--stopping.grace-epochs", "2"]  # else the second may stop the first
    process = sweep.start()
    sweep.wait_until(process, lambda trials: has_epochs(trials, 1, 1))
    if how == "SIGUSR1":
        os.killpg(process.pid, signal.SIGUSR1)  # Ray's processes, too, as `timeout` and SLURM send it
    elif how == "SIGTERM":
        process.terminate()
    else:
        sweep.stop_file.touch()
    process.communicate(timeout=120)
    log = sweep.log.read_text()
    assert process.returncode == 75, log[-4000:]
    assert "asked to stop: sweep sweep: " in log
    check_cut_off(sweep, log)


def check_cut_off(sweep: Sweep, log: str) -> None:
    assert "the same command goes on with it" in log
    assert "Traceback" not in log
    assert "<title>Sweep sweep</title>" in (sweep.folder / "report.html").read_text()
    first = sweep.trials()[1]
    assert (first.status, first.num_starts) == ("running", 0)  # that it was cut off is not held against it
    assert {path.name for path in sweep.folder.iterdir()} == {"report.html", "sweep.json", "trials", "tune"}


def check_what_is_left(sweep: Sweep, trials: dict[int, TrialRecord], result: dict[str, object]) -> None:
    best = trials[int(str(result["trial"]))]
    score, epoch = best.best("cider") or (0.0, 0)
    assert (result["cider"], result["epoch"]) == (score, epoch)
    assert score == max((one.best("cider") or (0.0, 0))[0] for one in trials.values())
    bundle = load_bundle(str(sweep.folder / "best"))
    assert (bundle.metrics["cider"], bundle.metrics["epoch"]) == (score, epoch)
    assert bundle.lineage is not None
    assert (bundle.lineage.trial, bundle.lineage.num_trials) == (best.number, 3)
    assert bundle.lineage.experiment.optimizer.learning_rate == best.settings["optimizer.learning_rate"]
    assert bundle.lineage.experiment.encoder.image_size == 64  # the features'
    assert bundle.lineage.data_digest == bundle.manifest.data_digest
    assert str(result["command"]).startswith("python jobs/train.py quickstart --data")
    board = (sweep.folder / "leaderboard.md").read_text().splitlines()
    assert len(board) == 2 + 3
    assert f"| {score:.3f} |" in board[2].replace("**", "")
    # Of what ended in the last seconds before a kill TensorBoard may know nothing; this one did not.
    settings, scores = read_hparams(sweep.folder / "tune", 3, "ray/tune/cider")
    assert settings == {"trial": 3, **trials[3].settings}
    assert scores == pytest.approx(list(trials[3].scores("cider").values()))


def read_hparams(folder: Path, number: int, metric: str) -> tuple[dict[str, float], list[float]]:
    """Return what TensorBoard's HParams page has of a trial: its settings, and the values of a metric that it names."""
    found, is_named, scores = {}, False, []
    for path in folder.glob(f"trial_{number:04d}*/events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == "_hparams_/session_start_info":
                    content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    found |= {name: one.number_value for name, one in content.session_start_info.hparams.items()}
                elif value.tag == "_hparams_/experiment":
                    content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    is_named |= metric in {one.name.tag for one in content.experiment.metric_infos}
                elif value.tag == metric:
                    scores.append(value.simple_value)
    return found, scores if is_named else []


def test_sweep_with_other_settings_is_not_gone_on_with(data: str, features: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, data, features)
    (sweep.folder).mkdir(parents=True)
    (sweep.folder / "sweep.json").write_text("{}")
    done = subprocess.run(sweep.command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 1
    assert "not a sweep of this version of caption_ray; use another --name" in done.stderr


@pytest.mark.slow
def test_sweep_runs_as_a_job_of_a_cluster(data: str, features: str, tmp_path: Path) -> None:
    """`ray job submit`, on a cluster that is not the only one of this machine, nor where Ray looks for it."""
    sweep = Sweep(tmp_path, data, features)
    port, dashboard = free_port(), free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets have no room for a longer path
    head = [ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = subprocess.Popen(
        # Its agent would else want the port that the other Ray's has, and no job is taken without an agent.
        [*head, "--include-dashboard=true", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        submit = [ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--working-dir", str(ROOT / "jobs")]
        command = [sys.executable, "tune.py", *sweep.command[2:], "--num-trials", "1", "--training.epochs", "1"]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [*submit, "--", *command], capture_output=True, text=True, check=False, env=environment
            )
            is_starting = any(said in done.stderr for said in ("Failed to connect", "No available agent"))
            if not is_starting or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        assert [trial.status for trial in sweep.trials().values()] == ["finished"]
        assert load_bundle(str(sweep.folder / "best")).lineage is not None
    finally:
        kill_with_family(cluster)
        shutil.rmtree(scratch, ignore_errors=True)
