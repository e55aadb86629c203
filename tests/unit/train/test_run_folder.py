import json
import shutil
from pathlib import Path

import pytest

from caption_ray import storage
from caption_ray.config import Experiment, ModelConfig, TrainingConfig
from caption_ray.errors import RunError, UsageError
from caption_ray.train.run_folder import (
    RunRecord,
    best_checkpoint,
    bundle_location,
    check_place,
    claim,
    delete_stopped,
    how_to_go_on,
    is_finished,
    keep_stopped,
    mend_snapshot,
    stopped_checkpoint,
    stopped_location,
    whole_checkpoints,
)
from caption_ray.train.state import CheckpointRecord, Progress

RECORD = RunRecord(
    experiment=Experiment(), data_digest="ab", vocabulary_sha256="89", features_key=None, encoder_sha256="01"
)
SNAPSHOT = "checkpoint_manager_snapshot.json"


def test_first_claim_records_the_run(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert claim(folder, RECORD) is False
    assert RunRecord.model_validate_json((tmp_path / "run" / "run.json").read_text()) == RECORD
    assert claim(folder, RECORD) is True


def test_place_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(UsageError, match=r"/proc/absent: cannot be written to"):
        check_place("/proc/absent/run")


def test_name_that_ray_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--name café: .* write it without accents"):
        check_place(f"{tmp_path}/café")
    with pytest.raises(UsageError, match=r"--name café: .* write it without accents"):
        check_place(storage.join(f"file://{tmp_path}", "café"))
    check_place(f"{tmp_path}/é/cafe #1")  # further up there may be any letters


def test_a_new_runs_place_is_left_as_it_was(tmp_path: Path) -> None:
    check_place(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_need_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(str(tmp_path), RECORD)
    bundle = Path(bundle_location(str(tmp_path)))
    bundle.mkdir()
    (bundle / "manifest.json").touch()
    monkeypatch.setattr(storage, "check_writable", lambda folder: pytest.fail(f"{folder} was tried"))
    check_place(str(tmp_path))


def test_other_settings_are_named(tmp_path: Path) -> None:
    claim(str(tmp_path), RECORD)
    other = RunRecord(
        experiment=Experiment(model=ModelConfig(hidden_size=512), training=TrainingConfig(epochs=3)),
        data_digest="cd",
        vocabulary_sha256="67",
        features_key="ef",
        encoder_sha256="23",
    )
    with pytest.raises(RunError) as caught:
        claim(str(tmp_path), other)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{tmp_path}: a run of this name was started with other settings:",
        "  model.hidden_size: 256 then, 512 now",
        "  training.epochs: 20 then, 3 now",
        "  data_digest: 'ab' then, 'cd' now",
        "  vocabulary_sha256: '89' then, '67' now",
        "  features_key: None then, 'ef' now",
        "  encoder_sha256: '01' then, '23' now",
        "Use another --name, or the same settings to go on with it.",
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"learning_rate": 1}'])
def test_record_of_another_program(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json: not a run of this version of caption_ray; use another --name"):
        claim(str(tmp_path), RECORD)


def test_a_run_is_finished_once_its_bundle_is_whole(tmp_path: Path) -> None:
    bundle = Path(bundle_location(str(tmp_path)))
    assert not is_finished(str(tmp_path))
    bundle.mkdir()
    (bundle / "model.safetensors").write_bytes(b"")
    assert not is_finished(str(tmp_path))
    (bundle / "manifest.json").write_text("{}")
    assert is_finished(str(tmp_path))


def write_checkpoint(folder: Path, number: int, state_bytes: int = 3, best: int = 0, cider: float = 0.0) -> None:
    """Write a checkpoint of three bytes that says it has `state_bytes`."""
    checkpoint = folder / f"epoch_{number:04d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(b"abc")
    record = CheckpointRecord(
        progress=Progress(epochs_done=number, best_epoch=best), metrics={"cider": cider}, state_bytes=state_bytes
    )
    (checkpoint / "progress.json").write_text(record.model_dump_json())


def test_best_checkpoint_that_is_gone_is_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path, 2, best=2, cider=0.5)
    write_checkpoint(tmp_path, 3, best=2, cider=0.4)
    location, record = best_checkpoint(str(tmp_path), "cider")
    assert (location, record.metrics) == (f"{tmp_path}/epoch_0002", {"cider": 0.5})
    assert caplog.messages == []
    shutil.rmtree(tmp_path / "epoch_0002")
    assert best_checkpoint(str(tmp_path), "cider")[0] == f"{tmp_path}/epoch_0003"
    assert "its best epoch, 2, has no checkpoint any more; that of 3 is taken" in caplog.text
    with pytest.raises(RunError, match="absent: ended without a checkpoint"):
        best_checkpoint(str(tmp_path / "absent"), "cider")


def test_sound_snapshot_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    sound = [{"checkpoint_dir_name": "epoch_0001", "metrics": {"cider": 0.1, "rank": 1}}]
    (tmp_path / SNAPSHOT).write_text(json.dumps({"checkpoint_results": sound}))
    assert mend_snapshot(str(tmp_path)) is None
    assert (tmp_path / SNAPSHOT).exists()


def test_new_run_has_nothing_to_mend(tmp_path: Path) -> None:
    assert mend_snapshot(str(tmp_path / "absent")) is None


OTHERWISE = b'{"checkpoint_results": [{"checkpoint_dir_name": "epoch_0001", "metrics": {"cider": 0.1}}]}'
"""Of a version that ranked checkpoints by their scores themselves."""


@pytest.mark.parametrize("content", [b"", b'{"checkpoint_results": [{"checkpo', b"\xff\xfe", OTHERWISE])
def test_cut_snapshot_gives_way_to_the_newest_whole_checkpoint(tmp_path: Path, content: bytes) -> None:
    for number in (1, 2, 10):
        write_checkpoint(tmp_path, number)
    write_checkpoint(tmp_path, 11, state_bytes=4)
    (tmp_path / SNAPSHOT).write_bytes(content)
    assert mend_snapshot(str(tmp_path)) == f"{tmp_path}/epoch_0010"
    assert not (tmp_path / SNAPSHOT).exists()
    assert (tmp_path / f"{SNAPSHOT}.broken").read_bytes() == content
    # Killed again before Ray wrote a new list: the checkpoint is still there.
    assert mend_snapshot(str(tmp_path)) == f"{tmp_path}/epoch_0010"


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_snapshot_of_a_checkpoint_that_is_not_whole_gives_way_to_one_that_is(tmp_path: Path, how: str) -> None:
    for number in (1, 2):
        write_checkpoint(tmp_path, number)
    named = [{"checkpoint_dir_name": f"epoch_000{number}", "metrics": {"rank": number}} for number in (1, 2)]
    (tmp_path / SNAPSHOT).write_text(json.dumps({"checkpoint_results": named}))
    if how == "truncated":  # a machine that broke down before it had written its pages
        (tmp_path / "epoch_0002" / "state.pt").write_bytes(b"")
    else:
        shutil.rmtree(tmp_path / "epoch_0002")
    assert mend_snapshot(str(tmp_path)) == f"{tmp_path}/epoch_0001"


def test_cut_snapshot_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT).write_text("{")
    assert mend_snapshot(str(tmp_path)) is None
    assert not (tmp_path / SNAPSHOT).exists()


def test_checkpoints_that_were_cut_off_do_not_count(tmp_path: Path) -> None:
    for number in (10, 2):
        write_checkpoint(tmp_path, number)
    write_checkpoint(tmp_path, 11, state_bytes=4)  # the copy of state.pt was cut off
    write_checkpoint(tmp_path, 12)
    (tmp_path / "epoch_0012" / "progress.json").write_text('{"progr')
    write_checkpoint(tmp_path, 13)
    (tmp_path / "epoch_0013" / "state.pt").unlink()
    assert list(whole_checkpoints(str(tmp_path))) == [f"{tmp_path}/epoch_0002", f"{tmp_path}/epoch_0010"]
    assert whole_checkpoints(str(tmp_path / "absent")) == {}
    (tmp_path / "another").mkdir()
    write_checkpoint(tmp_path / "another", 9)  # a run in this one's folder
    assert len(whole_checkpoints(str(tmp_path))) == 2


def test_storage_that_is_gone_is_no_reason_to_say_that_there_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: str) -> list[str]:
        raise OSError("503")

    assert how_to_go_on(str(tmp_path)) == "It has no checkpoint yet: the same command begins it anew."
    write_checkpoint(tmp_path, 1)
    assert how_to_go_on(str(tmp_path)) == f"The same command goes on from its last checkpoint in {tmp_path}."
    monkeypatch.setattr(storage, "list_files", gone)
    assert how_to_go_on(str(tmp_path)).endswith(f"from its last checkpoint in {tmp_path}, if it has one.")


def test_where_a_run_was_stopped_is_none_of_the_checkpoints_between_epochs(tmp_path: Path) -> None:
    run_folder = str(tmp_path)
    assert stopped_checkpoint(run_folder) is None
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2)
    (tmp_path / "epoch_0002").rename(tmp_path / "stopped")
    assert epochs_at_stop(run_folder) == 2
    assert list(whole_checkpoints(run_folder)) == [f"{tmp_path}/epoch_0001"]
    (tmp_path / "stopped" / "state.pt").write_bytes(b"a")  # the copy was cut off
    assert stopped_checkpoint(run_folder) is None


def epochs_at_stop(run_folder: str) -> int:
    stopped = stopped_checkpoint(run_folder)
    assert stopped is not None
    return stopped.progress.epochs_done


def test_the_last_stop_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder = str(tmp_path / "run")
    for number in (1, 2, 3):
        write_checkpoint(tmp_path, number)
    keep_stopped(run_folder, str(tmp_path / "epoch_0001"))
    keep_stopped(run_folder, str(tmp_path / "epoch_0002"))

    def cut_off(source: str, destination: str) -> None:
        storage.write_text(f"{destination}/progress.json", storage.read_text(f"{source}/progress.json"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "copy_folder", cut_off)
        with pytest.raises(KeyboardInterrupt):
            keep_stopped(run_folder, str(tmp_path / "epoch_0003"))
    assert epochs_at_stop(run_folder) == 2
    assert list(whole_checkpoints(run_folder)) == []
    delete = storage.delete_folder

    def cut_off_after(location: str) -> None:
        delete(location)
        if location.endswith("/stopped"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete_folder", cut_off_after)
        with pytest.raises(KeyboardInterrupt):
            keep_stopped(run_folder, str(tmp_path / "epoch_0003"))
    assert epochs_at_stop(run_folder) == 3
    assert stopped_location(run_folder).endswith("/stopped.new")
    keep_stopped(run_folder, str(tmp_path / "epoch_0002"))
    assert epochs_at_stop(run_folder) == 2
    assert stopped_location(run_folder).endswith("/stopped")
    keep_stopped(run_folder, str(tmp_path / "epoch_0003"))
    assert epochs_at_stop(run_folder) == 3
    delete_stopped(run_folder)
    assert stopped_checkpoint(run_folder) is None
    assert not list((tmp_path / "run").rglob("*.pt"))
