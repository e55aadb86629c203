"""Output folders that appear whole or not at all, and never at the cost of a stranger's files."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from caption_ray import storage
from caption_ray.errors import RunError, UsageError
from caption_ray.lock import LOCK_NAME, sole_driver

logger = logging.getLogger(__name__)

_REPLACED = ".replaced.partial"
"""What is appended to an output's name while another takes its place."""

_SCRATCH = re.compile(r"\.\d+\.partial$")
"""What `storage.write_bytes` appends to a local file's name until the file is whole."""


@contextmanager
def output_folder(output: str, *, marker: str, our_files: re.Pattern[str], overwrite: bool) -> Iterator[str]:
    """Yield the folder to write to, for the length of a `with` block that must write `marker` last.

    A local output is written to `OUTPUT.partial`, which takes its place when the block ends well, unless somebody has
    put a file of theirs there meanwhile; what an interrupted run left is removed first, and an output that a kill left
    in `OUTPUT.replaced.partial` put back. A URI is written to directly: there `marker`, the file without which no later
    step accepts the folder, is what makes it whole. A block that raises leaves nothing behind. While it is written, a
    file `OUTPUT.driver.json` beside it keeps a second one away; not where the output is a whole bucket.

    `our_files` matches the relative path of every file that may be deleted; what a killed `storage.write_bytes`
    left of one may be too. Raises UsageError where the output is a mount point or a file, holds any file that is not
    ours, or holds `marker` or, locally, any whole file, and `overwrite` is not set, or where the folder above it cannot
    be written to; RunError where another process is writing it, or it cannot be put in its place.
    """
    if not storage.is_uri(output):
        output = str(Path(output).resolve())  # so that a link stays a link and its target is replaced
        if os.path.ismount(output):
            raise UsageError(
                f"{output}: a file system is mounted there, and an output is put in its place by a rename, which a "
                f"mount point refuses; choose a folder in it, such as {storage.join(output, 'output')}"
            )
    _check(output, marker, our_files, overwrite)
    beside, _, name = output.rpartition("/")
    has_beside = not storage.is_uri(output) or storage.is_uri(f"{beside}.")  # gs://bucket/data has, gs://bucket has not
    if has_beside:
        storage.check_writable(beside or "/")
    with (
        sole_driver(beside or "/", "folder", name=f"{name}.{LOCK_NAME}") if has_beside else contextlib.nullcontext(),
        storage.naming(output),
        _written(output, marker=marker, our_files=our_files, overwrite=overwrite) as scratch,
    ):
        yield scratch


@contextmanager
def _written(output: str, *, marker: str, our_files: re.Pattern[str], overwrite: bool) -> Iterator[str]:
    """Do so as the only process that does."""
    if not storage.is_uri(output):
        _clear_replaced(output, marker, our_files)
    _check(output, marker, our_files, overwrite)  # again: another one may just have ended
    scratch = output if storage.is_uri(output) else f"{output}.partial"
    _check(scratch, marker, our_files, overwrite=True)
    filesystem, scratch_path = storage.open_location(scratch)
    if overwrite and storage.exists(storage.join(scratch, marker)):
        # First of all: from here on, the folder is no longer whole.
        filesystem.delete_file(storage.join(scratch_path, marker))
    storage.delete_folder(scratch)
    storage.make_folder(filesystem, scratch_path)
    try:
        yield scratch
    except BaseException:
        storage.delete_folder(scratch)
        raise
    if scratch != output:
        try:
            _check(output, marker, our_files, overwrite)  # again: it may have taken hours
            _put_in_place(scratch, output)
        except (UsageError, OSError) as error:
            kind = UsageError if isinstance(error, UsageError) else RunError
            raise kind(f"{error}. What has been written is whole, in {scratch}") from error
        _clear_replaced(output, marker, our_files)


def _put_in_place(scratch: str, output: str) -> None:
    """Have a whole local folder take the place of another, if there is one, which is kept for `_clear_replaced`."""
    replaced = Path(f"{output}{_REPLACED}")
    if os.path.lexists(replaced):
        raise UsageError(f"{replaced}: has come to be meanwhile, and is in the way")
    has_any = os.path.lexists(output)
    try:
        if has_any:
            Path(output).rename(replaced)
        Path(scratch).rename(output)
    except BaseException:
        if has_any and not os.path.lexists(output):
            replaced.rename(output)
        raise


def _clear_replaced(output: str, marker: str, our_files: re.Pattern[str]) -> None:
    """Delete the folder that another has taken the place of; put it back where `_put_in_place` was killed over it."""
    replaced = Path(f"{output}{_REPLACED}")
    _check(str(replaced), marker, our_files, overwrite=True)
    if (replaced / marker).exists() and not os.path.lexists(output):
        logger.info("%s was about to be replaced and is put back", output)
        replaced.rename(output)
    (replaced / marker).unlink(missing_ok=True)  # first of all: from here on, it is no longer whole
    storage.delete_folder(str(replaced))


def clear_parts(folder: Path, parts: Sequence[str], *, marker: str) -> None:
    """Make a local folder, mark it as ours, and delete those `parts`, files or folders, that lie in it.

    Raises UsageError, with all as it was, where a part is there but not `marker`, or where `folder` is a file or cannot
    be written to.
    """
    present = [path for path in (folder / part for part in parts) if path.exists() or path.is_symlink()]
    if present and not (folder / marker).exists():
        raise UsageError(
            f"{folder}: holds {present[0].name}, which was not written here ({marker} is absent) and is not deleted: "
            "choose another output, or an empty folder"
        )
    if any(path.is_file() for path in (folder, *folder.parents)):
        raise UsageError(f"{folder}: a file, not a folder; choose another output")
    storage.check_writable(str(folder))
    (folder / marker).touch()
    for path in present:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(folder: str) -> list[str]:
    """Return the paths of all below it, relative to it, but for folders; locally with links, wherever these lead.

    Raises NotADirectoryError, OSError.
    """
    if storage.is_uri(folder) or not os.path.lexists(folder):
        return storage.list_files(folder)
    found = []
    for path, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if Path(path, name).is_symlink()]
        found += [str(Path(path, name).relative_to(folder)) for name in (*files, *links)]
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


def _check(folder: str, marker: str, our_files: re.Pattern[str], overwrite: bool) -> None:
    try:
        files = _files(folder)
    except NotADirectoryError as error:
        raise UsageError(f"{folder}: a file, not a folder; choose another output") from error
    stranger = next((file for file in files if not our_files.fullmatch(_SCRATCH.sub("", file))), None)
    if stranger is not None:
        raise UsageError(
            f"{folder}: holds {stranger}, which was not written here and is not deleted: "
            "choose another output, or an empty folder"
        )
    if marker in files and not overwrite:
        raise UsageError(
            f"{folder}: is complete already ({marker}): choose another output, or replace it with --overwrite"
        )
    whole = next((file for file in files if not _SCRATCH.search(file)), None)
    if whole is not None and not overwrite and not storage.is_uri(folder):
        # Nothing that is interrupted leaves one here: of a name such as captions.json it may be anybody's.
        raise UsageError(
            f"{folder}: holds {whole}, but no {marker}, so it may be another's: choose another output, or an empty "
            "folder, or replace it with --overwrite"
        )
