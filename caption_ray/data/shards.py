"""Parquet shards, and the manifest that makes a folder of them a data set.

The manifest is written last, so a folder without it is never taken for a data set.
"""

import hashlib
import io
import json
import posixpath
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import Field, ValidationError
from typing_extensions import Self

from caption_ray import storage
from caption_ray.config import Settings
from caption_ray.errors import DatasetError, UsageError

FORMAT_VERSION = 1
MANIFEST_NAME = "dataset.json"
VOCABULARY_NAME = "vocabulary.json"

PICTURE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.large_binary()),  # the file's bytes; a split may pass the 2 GiB of pa.binary()
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("width", pa.int32()),  # upright, pixels
        ("height", pa.int32()),
    ]
)
"""The columns of a data set of pictures."""

MAX_SHARD_BYTES = 96 << 20
MAX_GROUP_BYTES = 16 << 20
MAX_GROUP_ROWS = 256


class ShardFile(Settings):
    """One finished Parquet file."""

    name: str = Field(description="File name, relative to the folder of its manifest.")
    num_rows: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    sha256: str = Field(description="SHA-256 of the file's content, in hexadecimal.")


class SplitFiles(Settings):
    """The pictures of one split."""

    num_pictures: int = Field(ge=0)
    num_captions: int = Field(ge=0)
    files: tuple[ShardFile, ...] = Field(description="In order; none where the split is empty.")


class DatasetManifest(Settings):
    """What a prepared data set holds."""

    format_version: int = Field(FORMAT_VERSION, description="Version of the folder's layout and columns.")
    kind: Literal["pictures"] = "pictures"
    layout: str = Field(description="Layout of the caption files that it was prepared from.")
    splits: dict[str, SplitFiles]
    num_pictures: int = Field(ge=0, description="Pictures over all splits.")
    num_captions: int = Field(ge=0, description="Captions over all splits.")
    vocabulary_size: int = Field(ge=0, description="Words in vocabulary.json, the four special ones included.")
    num_left_out: int = Field(ge=0, description="Problems that `--skip-bad` passed over; see report.json.")
    vocabulary_sha256: str = Field(description="SHA-256 of vocabulary.json.")
    digest: str = Field(description="SHA-256 over the sorted SHA-256s of all shards; features depend on no more.")


class ShardWriter:
    """Appends tables to `PREFIX-00000.parquet`, `PREFIX-00001.parquet`, ... in a folder.

    A file holds about `max_bytes` at most, a row group at most 256 rows and about 16 MiB; both are cut by
    the rows alone, so the files do not depend on how the rows were split into tables. Nothing is
    compressed: JPEG bytes and half-precision features hardly shrink. Use it in a `with` block; `files` is
    complete when that ends.
    """

    def __init__(self, folder: str, prefix: str, schema: pa.Schema, *, max_bytes: int = MAX_SHARD_BYTES) -> None:
        self.files: list[ShardFile] = []
        self.num_rows = 0
        self._folder = folder
        self._prefix = prefix
        self._schema = schema
        self._max_bytes = max_bytes
        self._max_group_bytes = min(max_bytes, MAX_GROUP_BYTES)
        self._group: list[pa.Table] = []
        self._group_bytes = 0
        self._shard: _Shard | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            self._finish()
        elif self._shard is not None:
            self._shard.abandon()

    def append(self, table: pa.Table) -> None:
        """Add rows. The table must have the schema's columns; their order does not matter."""
        table = table.select(self._schema.names).cast(self._schema)
        if self._shard is None and table.num_rows:
            self._begin()
        for index in range(table.num_rows):
            row = table.slice(index, 1)
            num_bytes = row.nbytes
            if len(self._group) == MAX_GROUP_ROWS or (
                self._group and self._group_bytes + num_bytes > self._max_group_bytes
            ):
                self._flush()
            self._group.append(row)
            self._group_bytes += num_bytes
        self.num_rows += table.num_rows

    def _flush(self) -> None:
        """Write the buffered rows as one row group, to a new file where the present one has no room."""
        if not self._group:
            return
        if self._shard is not None and self._shard.would_pass(self._max_bytes, self._group_bytes):
            self._finish()
        shard = self._shard or self._begin()
        shard.write(pa.concat_tables(self._group).combine_chunks())
        self._group, self._group_bytes = [], 0

    def _begin(self) -> "_Shard":
        name = f"{self._prefix}-{len(self.files):05d}.parquet"
        self._shard = _Shard(self._folder, name, self._schema)
        return self._shard

    def _finish(self) -> None:
        if self._shard is not None:
            self.files.append(self._shard.finish())
            self._shard = None


class _Shard:
    """One Parquet file while it is written, hashed on the way so that it need not be read again."""

    def __init__(self, folder: str, name: str, schema: pa.Schema) -> None:
        self._name = name
        filesystem, path = storage.open_location(storage.join(folder, name))
        self._sink = _HashingSink(filesystem.open_output_stream(path, compression=None))
        # Statistics would copy whole pictures into the file's footer.
        self._writer = pq.ParquetWriter(
            self._sink, schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self._num_rows = 0

    def would_pass(self, max_bytes: int, more_bytes: int) -> bool:
        """Tell whether this file has rows and grows beyond `max_bytes` with `more_bytes` of further ones."""
        return self._num_rows > 0 and self._sink.num_bytes + more_bytes > max_bytes

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._num_rows += table.num_rows

    def finish(self) -> ShardFile:
        self._writer.close()
        self._sink.close()
        return ShardFile(
            name=self._name,
            num_rows=self._num_rows,
            num_bytes=self._sink.num_bytes,
            sha256=self._sink.digest.hexdigest(),
        )

    def abandon(self) -> None:
        self._writer.close()
        self._sink.close()


class _HashingSink(io.RawIOBase):
    """A write-only stream that counts and hashes what it passes on."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # pyarrow passes bytes, no other buffer
        self._stream.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def digest_files(files: Iterable[ShardFile]) -> str:
    """Return the SHA-256 over the SHA-256s of shards, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(file.sha256 for file in files)).encode()).hexdigest()


def load_manifest(folder: str) -> DatasetManifest:
    """Read a prepared data set's manifest and check that its files are there, by one listing of the folder.

    Raises DatasetError where the manifest is absent, unreadable or of a newer format version, or where a
    file that it names is absent or of another size.
    """
    location = storage.join(folder, MANIFEST_NAME)
    try:
        text = storage.read_text(location)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"{folder}: no {MANIFEST_NAME}: not a prepared data set, or its preparation was interrupted: "
            "run jobs/prepare_data.py",
            exit_code=UsageError.exit_code,
        ) from error
    manifest = _parse_manifest(text, location)
    check_files(folder, [file for split in manifest.splits.values() for file in split.files])
    return manifest


def read_vocabulary(folder: str, manifest: DatasetManifest) -> str:
    """Return the content of a prepared data set's vocabulary.json.

    Raises DatasetError where it is absent, or is not the one that the manifest was written with.
    """
    location = storage.join(folder, VOCABULARY_NAME)
    try:
        content = storage.read_bytes(location)
    except FileNotFoundError as error:
        raise DatasetError(f"{location}: absent: copy or prepare the data set again") from error
    if manifest.vocabulary_sha256 != hashlib.sha256(content).hexdigest():
        raise DatasetError(
            f"{location}: not what {MANIFEST_NAME} says (SHA-256 differs): copy or prepare the data set again"
        )
    return content.decode()


def first_pictures(folder: str, split: str, count: int) -> dict[str, bytes]:
    """Return the first pictures of a prepared data set's split, as files, by name: `count`, or all that it has."""
    found: dict[str, bytes] = {}
    for file in load_manifest(folder).splits[split].files:
        filesystem, path = storage.open_location(storage.join(folder, file.name))
        with filesystem.open_input_file(path) as stream:
            for table in pq.ParquetFile(stream).iter_batches(batch_size=count, columns=["name", "image"]):
                found.update(zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True))
                if len(found) >= count:
                    return dict(list(found.items())[:count])
    return found


def check_files(folder: str, files: Sequence[ShardFile], remedy: str = "copy or prepare the data set again") -> None:
    """Check by one listing that the files are in the folder, in full; their content is not read.

    Raises DatasetError naming the first file that is absent or of another size.
    """
    sizes = _file_sizes(folder)
    for file in files:
        size = sizes.get(file.name)
        if size != file.num_bytes:
            found = "absent" if size is None else f"{size:,} bytes long"
            raise DatasetError(
                f"{folder}: {file.name} is {found}, the manifest says {file.num_bytes:,} bytes: "
                f"the copy is incomplete; {remedy}"
            )


def _file_sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file right in `folder`, by name."""
    filesystem, path = storage.open_location(folder)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {posixpath.basename(info.path): info.size for info in infos if info.is_file}


def _parse_manifest(text: str, location: str) -> DatasetManifest:
    try:
        content = json.loads(text)
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DatasetError(
                f"{location}: format version {version}, this program reads up to {FORMAT_VERSION}: "
                "use the newer caption_ray that wrote it, or prepare the data set again"
            )
        return DatasetManifest.model_validate(content)
    except (json.JSONDecodeError, ValidationError) as error:
        raise DatasetError(
            f"{location}: not a manifest of a prepared data set: run jobs/prepare_data.py ({error})"
        ) from error
