"""What decoding a picture would cost beyond its pixels, read from the file before anything is decoded.

A header that says few pixels may stand before tiles, or scans, that take any memory or time: they are refused here.
"""

import re
import struct
from math import ceil

from PIL import Image, TiffImagePlugin

from caption_ray.data.picture_layout import JPEG_MARK, START_OF_SCAN
from caption_ray.errors import PictureError, TooManyPixelsError

_MAX_SCANS = 20
"""Times that a JPEG may go over the largest picture's pixels; cameras and converters go 10 times."""

_MIN_SCAN_PIXELS = 100_000
"""What a scan counts for at least: it takes some microseconds however small the picture is."""

_MAX_TILES = 1 << 16
"""Of a TIFF: Pillow goes over them in Python."""

_TILE_TAGS = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH, TiffImagePlugin.TILEOFFSETS)

_MAX_CODED_TILES = 1 << 14
"""Of a JPEG 2000: its decoder holds some kilobytes for each, whatever is in it."""

_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51(.{38})", re.DOTALL)
_END_OF_IMAGE = 0xD9


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise TooManyPixelsError where there are more."""
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width}x{height} pixels are over the limit of {max_pixels:,}; save it smaller")


def check_parts(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Check what an opened picture, not decoded yet, is made of. Raises TooManyPixelsError, PictureError."""
    if image.format in ("JPEG", "MPO"):
        _check_scans(image, data, max_pixels)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiles(image, max_pixels)
    elif image.format == "JPEG2000":
        _check_codestreams(data, max_pixels)


def check_is_compiled(image: Image.Image) -> None:
    """Raise PictureError where Pillow decodes this kind of picture in Python, and so holds up all other threads."""
    names = [tile.codec_name for tile in getattr(image, "tile", [])]
    if any(name in Image.DECODERS for name in names):
        raise PictureError(f"this variant of {image.format} is not read here; save it as PNG or JPEG")


def _check_scans(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse a JPEG that goes over its pixels too often: each scan may be a few bytes long."""
    most = max(_MAX_SCANS * max_pixels // max(image.width * image.height, _MIN_SCAN_PIXELS), _MAX_SCANS)
    # Other data may have such a mark too: a thumbnail, a film behind the photo. Only where there are many is it asked.
    if data.count(b"\xff\xda") > most and _num_scans(data, most) > most:
        raise TooManyPixelsError(
            f"more than {most} scans of {image.width}x{image.height} pixels are over the limit of "
            f"{_MAX_SCANS} of {max_pixels:,}"
        )


def _num_scans(data: bytes, most: int) -> int:
    """Count a JPEG's scans up to its end, or one more than `most`."""
    found, position = 0, 2
    while found <= most and (mark := JPEG_MARK.search(data, position)):
        position = mark.end()
        if mark[1][0] == _END_OF_IMAGE:
            break
        found += mark[1][0] == START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return found


def _check_tiles(image: TiffImagePlugin.TiffImageFile, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles, of which each is decoded as a whole, are larger than a picture may be, or too many."""
    tags = image.tag_v2
    _check_num_tiles(len(image.tile), _MAX_TILES)
    if not any(tag in tags for tag in _TILE_TAGS):
        return  # strips: never longer than the picture, however many rows they say
    width, height = tags.get(TiffImagePlugin.TILEWIDTH), tags.get(TiffImagePlugin.TILELENGTH)
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise PictureError("its tiles have no size")
    check_pixels(width, height, max_pixels)
    _check_num_tiles(ceil(image.width / width) * ceil(image.height / height), _MAX_TILES)


def _check_codestreams(data: bytes, max_pixels: int) -> None:
    """Check JPEG 2000's own headers: the file around them may say other sizes."""
    for found in _CODESTREAM.finditer(data):
        _, _, right, bottom, left, top, width, height, tiles_left, tiles_top, num_parts = struct.unpack(
            ">HHIIIIIIIIH", found[1]
        )
        check_pixels(max(right - left, 0), max(bottom - top, 0), max_pixels)
        if num_parts > 4:
            raise PictureError(f"it has {num_parts} channels; at most 4 are read")
        if width and height:
            num_tiles = ceil((right - tiles_left) / width) * ceil((bottom - tiles_top) / height)
            _check_num_tiles(num_tiles, _MAX_CODED_TILES)


def _check_num_tiles(num_tiles: int, most: int) -> None:
    if num_tiles > most:
        raise PictureError(f"it is made of {num_tiles:,} tiles; at most {most:,} are read")
