"""What a run keeps on storage beside its checkpoints, and whether it may start, go on, or is finished."""

import json
import logging
from urllib.parse import unquote

from pydantic import Field, ValidationError

from caption_ray import storage
from caption_ray.bundle import MANIFEST_NAME as BUNDLE_MANIFEST
from caption_ray.config import Experiment, Settings
from caption_ray.errors import RunError, UsageError
from caption_ray.train.state import PROGRESS_NAME, STATE_NAME, CheckpointRecord

logger = logging.getLogger(__name__)

RANK = "rank"
"""What Ray Train is told beside an epoch's metrics, and chooses by which checkpoint to keep: `Progress.rank`."""

_RECORD_NAME = "run.json"
_STOPPED_NAMES = ("stopped", "stopped.new")
"""Where a checkpoint within an epoch lies, and where it arrives."""
# Ray Train's own list of checkpoints.
_SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"


class RunRecord(Settings):
    """What a run was started with; a run of that name goes on only with the same."""

    format_version: int = 1
    experiment: Experiment
    data_digest: str = Field(description="Digest of the prepared data set.")
    vocabulary_sha256: str = Field(description="Digest of its vocabulary.")
    features_key: str | None = Field(description="Key of the feature cache, where there is one.")
    encoder_sha256: str = Field(description="Digest of the encoder's weights at the start.")


def bundle_location(run_folder: str) -> str:
    """Return where a run leaves its bundle."""
    return storage.join(run_folder, "bundle")


def stopped_location(run_folder: str) -> str:
    """Return where a run that was stopped in the midst of an epoch has left its checkpoint.

    It is none of Ray Train's, which ranks checkpoints by scores: these come at the end of an epoch.
    """
    stopped, arriving = _stopped_locations(run_folder)
    return arriving if _read_record(stopped) is None and _read_record(arriving) is not None else stopped


def keep_stopped(run_folder: str, folder: str) -> None:
    """Copy a checkpoint there from a local folder. Whenever it is killed, the last stop's is there or this one's."""
    stopped, arriving = _stopped_locations(run_folder)
    if stopped_location(run_folder) == arriving:  # an earlier one was killed between the two
        storage.replace_folder(arriving, stopped)
    storage.delete_folder(arriving)
    storage.copy_folder(folder, arriving)
    storage.replace_folder(arriving, stopped)


def how_to_go_on(run_folder: str) -> str:
    """Return a sentence that tells what the same command would do with a run that has ended too early."""
    try:
        has_any = bool(whole_checkpoints(run_folder) or stopped_checkpoint(run_folder))
    except OSError:  # storage that is gone may be why it has ended
        return f"The same command goes on from its last checkpoint in {run_folder}, if it has one."
    if has_any:
        return f"The same command goes on from its last checkpoint in {run_folder}."
    return "It has no checkpoint yet: the same command begins it anew."


def delete_stopped(run_folder: str) -> None:
    """Forget where the run was stopped."""
    for location in _stopped_locations(run_folder):
        storage.delete_folder(location)


def _stopped_locations(run_folder: str) -> list[str]:
    return [storage.join(run_folder, name) for name in _STOPPED_NAMES]


def stopped_checkpoint(run_folder: str) -> CheckpointRecord | None:
    """Return the record of that checkpoint, None where there is none, or none whole."""
    return _read_record(stopped_location(run_folder))


def is_begun(run_folder: str) -> bool:
    """Tell whether there is a run of this name."""
    return storage.exists(storage.join(run_folder, _RECORD_NAME))


def is_finished(run_folder: str) -> bool:
    """Tell whether the run has written its bundle."""
    return storage.exists(storage.join(bundle_location(run_folder), BUNDLE_MANIFEST))


def check_place(run_folder: str) -> None:
    """Raise UsageError where a run that is not finished cannot be written; a new one's folder is not made yet."""
    if is_finished(run_folder):
        return
    folder, _, name = run_folder.rpartition("/")
    if not unquote(name).isascii():
        raise UsageError(f"--name {unquote(name)}: Ray takes a run's name in ASCII alone; write it without accents")
    storage.check_writable(run_folder if is_begun(run_folder) else folder or "/")


def claim(run_folder: str, record: RunRecord) -> bool:
    """Record a new run, or check that the one of this name was started alike; tell whether it existed.

    Raises RunError naming each setting that differs.
    """
    return claim_record(storage.join(run_folder, _RECORD_NAME), record, "run")


def claim_record(path: str, record: Settings, kind: str) -> bool:
    """Do the same for the record of anything that goes on under its name, a `kind` of work."""
    if not storage.exists(path):
        storage.write_text(path, record.model_dump_json(indent=1))
        return False
    try:
        earlier = type(record).model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        raise RunError(f"{path}: not a {kind} of this version of caption_ray; use another --name") from error
    differences = _differences("", earlier.model_dump(), record.model_dump())
    if differences:
        listing = "\n".join(f"  {line}" for line in differences)
        raise RunError(
            f"{path.rpartition('/')[0]}: a {kind} of this name was started with other settings:\n{listing}\n"
            "Use another --name, or the same settings to go on with it."
        )
    return True


def _differences(prefix: str, earlier: object, now: object) -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            line for key in earlier for line in _differences(f"{prefix}.{key}".lstrip("."), earlier[key], now.get(key))
        ]
    return [] if earlier == now else [f"{prefix.removeprefix('experiment.')}: {earlier!r} then, {now!r} now"]


def mend_snapshot(run_folder: str) -> str | None:
    """Put Ray's list of checkpoints aside where a kill cut it off, and return the newest whole checkpoint.

    So are one that names a checkpoint that is cut off or not there any more, and one of an earlier version, which
    ranked checkpoints otherwise.
    Ray writes that list in place, and refuses to start on a broken one. Returns None where the list is sound, or there
    is no checkpoint; without a list the checkpoints count too, since an earlier mending may have been cut off itself.
    """
    path = storage.join(run_folder, _SNAPSHOT_NAME)
    try:
        listed = json.loads(storage.read_bytes(path))["checkpoint_results"]
        folders = [storage.join(run_folder, one["checkpoint_dir_name"]) for one in listed if RANK in one["metrics"]]
        if len(folders) == len(listed) and all(map(_read_record, folders)):
            return None
        raise ValueError("of other checkpoints than there are")
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, LookupError):
        filesystem, broken = storage.open_location(path)
        filesystem.move(broken, f"{broken}.broken")
    checkpoints = whole_checkpoints(run_folder)
    if not checkpoints:
        return None
    newest = max(checkpoints, key=lambda location: checkpoints[location].progress.epochs_done)
    logger.warning("%s was cut off, lost, an earlier version's or of what is not whole; going on from %s", path, newest)
    return newest


def whole_checkpoints(run_folder: str) -> dict[str, CheckpointRecord]:
    """Return the records of a run's checkpoints between epochs by location, oldest first, without those cut off."""
    names = [name.rpartition("/")[0] for name in storage.list_files(run_folder) if name.endswith(f"/{PROGRESS_NAME}")]
    records = {
        location: record
        for location in (
            storage.join(run_folder, name) for name in names if name not in _STOPPED_NAMES and "/" not in name
        )
        if (record := _read_record(location)) is not None
    }
    return dict(sorted(records.items(), key=lambda pair: pair[1].progress.epochs_done))


def best_checkpoint(run_folder: str, select_by: str) -> tuple[str, CheckpointRecord]:
    """Return where the best of a run's checkpoints lies, and its record. Raises RunError where there is none.

    From the checkpoints themselves: Ray's list of them may have been cut off, and begun anew.
    """
    checkpoints = whole_checkpoints(run_folder)
    if not checkpoints:
        raise RunError(f"{run_folder}: ended without a checkpoint; look into it")
    best = max(checkpoints, key=lambda location: checkpoints[location].metrics[select_by])
    *_, newest = checkpoints.values()
    if (lost := newest.progress.best_epoch) != (taken := checkpoints[best].progress.epochs_done):
        logger.warning(
            "%s: its best epoch, %d, has no checkpoint any more; that of %d is taken", run_folder, lost, taken
        )
    return best, checkpoints[best]


def _read_record(location: str) -> CheckpointRecord | None:
    """Return a checkpoint's record, None where it is absent or was cut off by a kill."""
    try:
        record = CheckpointRecord.model_validate_json(storage.read_bytes(storage.join(location, PROGRESS_NAME)))
    except (FileNotFoundError, ValidationError):
        return None
    return record if storage.num_bytes(storage.join(location, STATE_NAME)) == record.state_bytes else None
