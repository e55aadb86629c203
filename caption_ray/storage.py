"""The one module that knows about locations: local paths and URIs such as gs://, through pyarrow.fs.

A location is a plain `str` all over the package and becomes a file system only here. Paths in it are escaped in a URI
(`a%20b.jpg`) and plain in a local path; a path that stands alone, as in a listing, is always plain.
"""

import contextlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from pyarrow import fs

from caption_ray.errors import UsageError

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for what `ray job submit` starts, in a folder of the job's own."""


def is_uri(location: str) -> bool:
    """Tell a URI (`gs://bucket/x`) from a local path."""
    return "://" in location


def with_home(path: str) -> Path:
    """Return a local path, `~` in it replaced. Raises UsageError for the home of nobody that this machine knows."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: {os.uname().nodename} has no such home; write the path in full") from error


def absolute(location: str | os.PathLike[str]) -> str:
    """Return a local path made absolute (workers run elsewhere), or a URI without its trailing slash.

    Raises UsageError as `with_home` does.
    """
    text = os.fspath(location)
    return text.rstrip("/") if is_uri(text) else str(with_home(text).absolute())


def local_path(option: str, path: str) -> Path:
    """Return a path that `option` has named. Raises UsageError for a URI, and as `with_home` does."""
    if is_uri(path):
        raise UsageError(f"{option} {path}: takes a path on this machine, not a URI")
    return with_home(path)


def input_at(option: str, location: str) -> str:
    """Return where an input is, as `absolute` does; `option` has named it.

    Raises UsageError for a relative folder that a Ray job does not have: its own is a copy of the code.
    """
    if _is_of_job(location) and not exists(location):
        raise UsageError(
            f"{option} {location}: not in the job's copy of the code; in a Ray job, name an absolute folder that all "
            "nodes see, or a URI"
        )
    return absolute(location)


def _is_of_job(location: str) -> bool:
    """Tell whether a location is relative to the folder of a Ray job, in which this process runs."""
    return _JOB_VARIABLE in os.environ and not is_uri(location) and not with_home(location).is_absolute()


def output_at(option: str, location: str) -> str:
    """Return where an output is to be, as `absolute` does; `option` has named it.

    Raises UsageError for a relative folder in a Ray job, whose own folder is a copy that Ray throws away.
    """
    if _is_of_job(location):
        raise UsageError(
            f"{option} {location}: in a Ray job, name an absolute folder that all nodes see, or a URI; what lies in "
            "the job's own folder is gone with the job"
        )
    return absolute(location)


def join(location: str, *parts: str) -> str:
    """Append plain names or relative paths to a location; they are escaped where it is a URI."""
    return posixpath.join(location, *(map(quote, parts) if is_uri(location) else parts))


def relative(location: str, folder: str) -> str:
    """Return the plain relative path that was joined to `folder` to make `location`."""
    path = location.removeprefix(f"{folder}/")
    return unquote(path) if is_uri(folder) else path


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system that holds `location`, and the path of it there.

    Raises UsageError where the scheme is unknown.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), str(Path(location).absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (ValueError, OSError) as error:
        raise UsageError(f"{location}: not a location that can be opened ({error})") from error
    return filesystem, path


def exists(location: str) -> bool:
    """Tell whether a file or folder is there."""
    filesystem, path = open_location(location)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def num_bytes(location: str) -> int | None:
    """Return a file's size, None where it is absent."""
    filesystem, path = open_location(location)
    size: int | None = filesystem.get_file_info(path).size
    return size


def list_files(location: str) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted; none where it is absent."""
    filesystem, path = open_location(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    files = (info.path for info in filesystem.get_file_info(selector) if info.is_file)
    return sorted(posixpath.relpath(file, path) for file in files)


def read_bytes(location: str) -> bytes:
    """Return a file's content. Raises FileNotFoundError where it is absent."""
    filesystem, path = open_location(location)
    with naming(location), filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def read_text(location: str) -> str:
    """Return a UTF-8 file's content."""
    return read_bytes(location).decode("utf-8")


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder where files need one. On Google Cloud Storage none do, and making one would ask for rights over the
    bucket itself, which who may write into it need not have.
    """
    if filesystem.type_name != "gcs":
        filesystem.create_dir(path, recursive=True)


def write_bytes(location: str, content: bytes) -> None:
    """Write a file, making its folder; a local file appears whole or not at all."""
    filesystem, path = open_location(location)
    make_folder(filesystem, posixpath.dirname(path))
    if isinstance(filesystem, fs.LocalFileSystem):
        with naming(path), _scratch(path) as scratch:
            scratch.write_bytes(content)
            scratch.replace(path)
        return
    with filesystem.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def write_text(location: str, content: str) -> None:
    """Write a UTF-8 file, as `write_bytes` does."""
    write_bytes(location, content.encode("utf-8"))


def rewrite_text(location: str, content: str) -> None:
    """Write over a file that is the user's own: locally a link stays one, and rights stay as they are."""
    if is_uri(location):
        write_text(location, content)
        return
    path = Path(location).resolve()
    with _scratch(path) as scratch:
        scratch.write_text(content, encoding="utf-8")
        scratch.chmod(stat.S_IMODE(path.stat().st_mode))
        scratch.replace(path)


@contextlib.contextmanager
def naming(location: str) -> Iterator[None]:
    """Have an OSError that names no file, as that of a full disk does not, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None and location not in str(error):
            error.filename = location
        raise


def check_writable(folder: str) -> None:
    """Raise UsageError where no file can be written in a folder, before work is done for it; an absent one is made."""
    probe = join(folder, f"writable.{secrets.token_hex(8)}")  # containers may share a process number
    try:
        write_text(probe, "")
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be written to ({error.strerror or error}); choose another output"
        ) from error
    with contextlib.suppress(OSError):  # who may write need not have the right to delete
        delete_file(probe)


def create_text(location: str, content: str) -> bool:
    """Write a local UTF-8 file, whole, and tell whether it was: not where there is one, of several that do it at once
    not but for one, and not where the file system has no hard links.
    """
    path = Path(open_location(location)[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path) as scratch:
        scratch.write_text(content, encoding="utf-8")
        try:
            os.link(scratch, path)
        except OSError:
            return False
        finally:
            scratch.unlink()
    return True


def delete_file(location: str) -> None:
    """Delete a file; an absent one is fine."""
    filesystem, path = open_location(location)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def delete_folder(location: str) -> None:
    """Delete a folder and all below it; an absent one is fine."""
    filesystem, path = open_location(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir_contents(path)
        # In a bucket a folder is there as long as something is in it, and only then, unless an object stands for it.
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def copy_folder(source: str, destination: str) -> None:
    """Copy all files below one folder into another, on any two file systems."""
    source_fs, source_path = open_location(source)
    destination_fs, destination_path = open_location(destination)
    # pyarrow makes those that the source lists, and a bucket lists none.
    for folder in {posixpath.dirname(file) for file in list_files(source)}:
        make_folder(destination_fs, posixpath.join(destination_path, folder))
    fs.copy_files(source_path, destination_path, source_filesystem=source_fs, destination_filesystem=destination_fs)


def replace_folder(source: str, destination: str) -> None:
    """Put a whole folder in the place of another, of the same file system; from then on the first is gone."""
    filesystem, source_path = open_location(source)
    delete_folder(destination)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.move(source_path, open_location(destination)[1])
        return
    copy_folder(source, destination)  # a bucket has no folders to be moved
    delete_folder(source)


@contextlib.contextmanager
def _scratch(path: str | Path) -> Iterator[Path]:
    """Yield where a local file is written until it is whole; what a kill leaves of it is known by this name.

    A block that raises leaves nothing there, which would keep a full disk full.
    """
    scratch = Path(f"{path}.{os.getpid()}.partial")
    try:
        yield scratch
    except BaseException:
        with contextlib.suppress(OSError):  # it may never have come to be
            scratch.unlink()
        raise
