"""How many parts a picture file is made of, counted before Pillow opens it: it goes over them in Python, one by one.

A few megabytes of empty segments, chunks or blocks would take it many seconds, and hold up all other threads meanwhile.
Here only the parts' lengths are read, and no more parts than are allowed.
"""

import re
from collections.abc import Callable

from caption_ray.errors import PictureError

MAX_PARTS = 1 << 13
"""Segments of a JPEG before its pixels, chunks of a PNG, blocks of a GIF before its first frame, boxes of a JPEG 2000.

A PNG of 10 MiB as libpng writes it has 1,300, a JPEG with the largest colour profile 260.
"""

_LARGE_CHUNK = 1 << 12
"""Bytes of a PNG's chunk that is not counted: a scan of 100 MB may be ten thousand of them."""

MAX_LOOSE_BYTES = 1 << 16
"""Bytes between those parts, which belong to none; and of the header of a PPM, which is text."""

JPEG_MARK = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
"""But for the marks that stand within a scan's data; its group is the mark's code."""

START_OF_SCAN = 0xDA

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKS_ALONE = frozenset((0x01, 0xD8, 0xD9, *range(0xF0, 0xFE)))  # Pillow reads no length behind them
_JP2 = b"\0\0\0\x0cjP  "
_PPM_GAP = re.compile(rb"(?:\s+|#[^\r\n]*)*")
_PPM_TOKEN = re.compile(rb"[^\s#]{1,32}")


def check_layout(data: bytes) -> None:
    """Raise PictureError where going over the file's parts would take long. Broken ones are left to the decoder."""
    for begin, check in _CHECKS.items():
        if data.startswith(begin):
            check(data)


def _check_jpeg(data: bytes) -> None:
    num_parts, num_loose, position = 0, 0, 2
    while mark := JPEG_MARK.search(data, position, position + MAX_LOOSE_BYTES):
        code = mark[1][0]
        if code == START_OF_SCAN:
            return
        num_parts, num_loose = num_parts + 1, num_loose + mark.start(1) - 1 - position
        _check(num_parts, num_loose)
        position = mark.end()
        if code not in _JPEG_MARKS_ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
    _check(num_parts, num_loose + min(len(data) - position, MAX_LOOSE_BYTES))


def _check_png(data: bytes) -> None:
    num_parts, position = 0, len(_PNG)
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        num_parts += length < _LARGE_CHUNK
        _check(num_parts, 0)
        position += 12 + length


def _check_gif(data: bytes) -> None:
    colours = data[10:11]
    position = 13 + (3 << (1 + (colours[0] & 7)) if colours and colours[0] & 0x80 else 0)
    num_parts = 0
    while data[position : position + 1] == b"\x21":  # extensions, each of blocks up to an empty one
        position += 2
        while position < len(data):
            num_parts += 1
            _check(num_parts, 0)
            length = data[position]
            position += 1 + length
            if not length:
                break


def _check_jp2(data: bytes) -> None:
    num_parts, position = 0, 0
    while position < len(data):
        num_parts += 1
        _check(num_parts, 0)
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if length == 1:  # it stands behind the kind
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        position += 8 if kind == b"jp2h" else length or len(data)  # that one holds others; 0 is up to the end


def _check_ppm(data: bytes) -> None:
    position = 2
    for _ in range(2 if data[1:2] in b"14" else 3):  # width, height, and but for those the largest value
        for pattern in (_PPM_GAP, _PPM_TOKEN):
            if found := pattern.match(data, position, MAX_LOOSE_BYTES):
                position = found.end()
    _check(0, position)


def _check(num_parts: int, num_loose: int) -> None:
    if num_parts > MAX_PARTS:
        raise PictureError(f"it is made of more than {MAX_PARTS:,} parts; save it anew, without what is no picture")
    if num_loose >= MAX_LOOSE_BYTES:
        raise PictureError(f"{MAX_LOOSE_BYTES:,} bytes and more of it belong to no part; save it anew")


_CHECKS: dict[bytes, Callable[[bytes], None]] = {
    b"\xff\xd8": _check_jpeg,
    _PNG: _check_png,
    b"GIF8": _check_gif,
    _JP2: _check_jp2,
    b"P": _check_ppm,
}
