"""Copies of shards on a node's own disk, for file systems that many nodes read from at once.

A shard is copied when a node first reads of it, by one process of that node while the others wait, and stays until the
folder is deleted: a SLURM job's own folder goes with the job.
"""

import fcntl
import os
import shutil
from pathlib import Path

from pydantic import Field

from caption_ray import storage
from caption_ray.config import Settings
from caption_ray.data.shards import ShardFile
from caption_ray.errors import UsageError

_CHUNK = 8 << 20


class StagedShard(Settings):
    """Where a shard is, and whether it is to be copied to the node that reads it."""

    location: str
    file: ShardFile
    stage: str | None = Field(
        None, description="Folder on each node for copies; `~` and environment variables in it are those of the node."
    )

    def local(self) -> str:
        """Return where to read it on this node, having copied it there if that was asked for.

        Raises UsageError where the folder names a variable or home that the node does not have, cannot be written to,
        or has no room, or the shard is another than it was.
        """
        if self.stage is None:
            return self.location
        folder = Path(os.path.expandvars(_with_home(self.stage)))
        if "$" in str(folder):
            raise UsageError(
                f"--stage {self.stage}: {os.uname().nodename} has no such variable; name a folder on a disk of the node"
            )
        # The digest, for another data set may have files of the same name.
        copy = folder / f"{self.file.sha256[:16]}-{self.file.name}"
        if _is_whole(copy, self.file.num_bytes):
            return str(copy)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{copy.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(copy, self.file.num_bytes):
                    _copy(self.location, copy)
                    self._check(copy)
        except OSError as error:
            raise UsageError(
                f"--stage {self.stage}: {self.location} cannot be copied to {copy} on {os.uname().nodename}: {error}; "
                "name a folder on a disk of the node with room for the data set, or leave --stage out"
            ) from error
        return str(copy)

    def _check(self, copy: Path) -> None:
        if not _is_whole(copy, self.file.num_bytes):
            found = copy.stat().st_size
            copy.unlink()
            raise UsageError(
                f"{self.location}: is {found:,} bytes long, and its manifest said {self.file.num_bytes:,}: it was "
                "written anew meanwhile; begin again"
            )


def check_stage(stage: str | None) -> None:
    """Raise UsageError for a relative folder, which is another one for each process, a URI, or an unknown home."""
    if stage is not None and not _with_home(stage).startswith(("/", "$")):
        raise UsageError(
            f"--stage {stage}: names no place on a node's disk; begin it with /, ~ or a variable, as in '$TMPDIR/data'"
        )


def _with_home(stage: str) -> str:
    try:
        return str(storage.with_home(stage)) if stage.startswith("~") else stage
    except UsageError as error:
        raise UsageError(f"--stage {error}") from error


def _is_whole(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _copy(location: str, copy: Path) -> None:
    """Copy a file of any file system; it appears whole or not at all."""
    partial = copy.with_name(f"{copy.name}.partial")
    filesystem, path = storage.open_location(location)
    try:
        with filesystem.open_input_stream(path, compression=None) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)  # half a copy would only keep the disk full
