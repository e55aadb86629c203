import io
import struct
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, features

from caption_ray.data.images import _PILLOWS_WARNINGS, open_picture
from caption_ray.data.picture_limits import _MAX_CODED_TILES, _MAX_TILES
from caption_ray.errors import NotAPictureError, PictureError, TooManyPixelsError


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


JPEG = encode(Image.effect_noise((64, 64), 90), "JPEG")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", NotAPictureError),
        (b"a man on a horse\n", NotAPictureError),
        (b"<svg/>", NotAPictureError),
        (JPEG[:-900], PictureError),
        (JPEG[:30], PictureError),
        (b"\x89PNG\r\n\x1a\n", PictureError),
    ],
)
def test_no_picture_is_told_from_a_broken_one(data: bytes, kind: type[PictureError]) -> None:
    with pytest.raises(PictureError) as caught:
        open_picture(data)
    assert type(caught.value) is kind


def test_limit_of_pixels_counts_the_pixels_of_the_header() -> None:
    assert open_picture(encode(Image.new("RGB", (5, 4))), max_pixels=20).size == (5, 4)
    with pytest.raises(TooManyPixelsError, match="5x5 pixels are over the limit of 20"):
        open_picture(encode(Image.new("RGB", (5, 5))), max_pixels=20)


SCAN, SIDE = b"\xff\xda", 320


def with_scans(num_scans: int, side: int = SIDE) -> bytes:
    """Return a progressive JPEG with its last scan as often as it takes."""
    data = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    last, missing = data.rindex(SCAN), num_scans - data.count(SCAN)
    return data[:-2] + data[last:-2] * missing + data[-2:]


def test_limit_of_pixels_counts_each_scan_of_a_jpeg() -> None:
    assert open_picture(with_scans(20), max_pixels=SIDE * SIDE).size == (SIDE, SIDE)
    with pytest.raises(TooManyPixelsError, match="more than 20 scans of 320x320 pixels"):
        open_picture(with_scans(21), max_pixels=SIDE * SIDE)
    assert open_picture(with_scans(21), max_pixels=SIDE * SIDE * 21 // 20).size == (SIDE, SIDE)


def test_marks_of_scans_count_only_where_they_are_some() -> None:
    data = encode(Image.new("L", (SIDE, SIDE)), "JPEG", comment=SCAN * 50)
    film = SCAN * 50 + b"\xff\x00" * 10
    assert open_picture(data + film, max_pixels=SIDE * SIDE).size == (SIDE, SIDE)


def test_scans_of_a_small_picture_take_time_too() -> None:
    assert open_picture(with_scans(1000, 8), max_pixels=5_000_000).size == (8, 8)
    with pytest.raises(TooManyPixelsError, match="more than 1000 scans"):
        open_picture(with_scans(1001, 8), max_pixels=5_000_000)


def test_only_the_formats_that_are_asked_for_are_read() -> None:
    data = encode(Image.new("RGB", (4, 4)), "GIF")
    assert open_picture(data, formats=("GIF", "PNG")).size == (4, 4)
    with pytest.raises(NotAPictureError):
        open_picture(data, formats=("PNG",))


@pytest.mark.parametrize(
    "data",
    [
        b"P5 4 4 254 " + bytes(16),
        b"P2 2 2 255 1 2 3 4",
        b"P1 2 2 1 0 1 0",
        encode(Image.new("L", (4, 4)), "BMP"),
    ],
    ids=["maxval 254", "plain grey", "plain bits", "RLE"],
)
def test_named_formats_are_read_only_where_that_is_compiled(data: bytes) -> None:
    if data.startswith(b"BM"):  # a run of four pixels for each row, and the end
        start = int.from_bytes(data[10:14], "little")
        data = data[:30] + b"\1\0\0\0" + data[34:start] + b"\4\0\0\0" * 4 + b"\0\1"
    assert open_picture(data).size[0] in (2, 4)
    with pytest.raises(PictureError, match="is not read here; save it as PNG or JPEG"):
        open_picture(data, formats=("BMP", "PPM"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_named_formats_are_read_as_they_are_mostly_written(mode: str) -> None:
    for kind in ("BMP", "PPM"):
        assert open_picture(encode(Image.new(mode, (4, 4)), kind), formats=(kind,)).size == (4, 4)


@pytest.mark.parametrize("bound", [_MAX_TILES, _MAX_CODED_TILES])
def test_bounds_of_tiles_leave_room_for_the_largest_pictures(bound: int) -> None:
    assert bound * 64 * 64 > 50_000_000


ODD = encode(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00")  # cut off


def test_warnings_of_others_are_heard_while_many_threads_decode() -> None:
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        pictures = pool.map(open_picture, [ODD] * 200)
        for _ in range(200):
            warnings.warn("heard", UserWarning, stacklevel=1)
            time.sleep(0.0001)  # lets the others go on
        assert [image.size for image in pictures] == [(64, 64)] * 200
    assert [str(warning.message) for warning in caught] == ["heard"] * 200


def test_filters_of_others_stay_while_pictures_are_decoded() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        pictures = pool.map(open_picture, [ODD] * 200)
        for _ in range(200):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                time.sleep(0.0001)
        assert [image.size for image in pictures] == [(64, 64)] * 200
    assert [known for known in warnings.filters if known not in before] in ([], [_PILLOWS_WARNINGS])
    assert [known for known in before if known not in warnings.filters] == []


def test_odd_picture_is_read_though_warnings_are_errors() -> None:
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_picture(ODD).size == (64, 64)
            num_filters = len(warnings.filters)
            assert open_picture(ODD).size == (64, 64)
            assert len(warnings.filters) == num_filters
            with pytest.raises(UserWarning):
                warnings.warn("of others", UserWarning, stacklevel=1)


def jpeg_2000(width: int, height: int, tile: int, num_parts: int = 1) -> bytes:
    """A file of 16x16 by its outer header, whose codestream says another size, of tiles and channels too."""
    file = bytearray(encode(Image.new("L", (16, 16)), "JPEG2000"))
    start = file.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">IIIIIIIIH", file, start, width, height, 0, 0, tile, tile, 0, 0, num_parts)
    return bytes(file)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow writes no JPEG 2000")
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (lambda: jpeg_2000(20_000, 20_000, 20_000), TooManyPixelsError),
        (lambda: jpeg_2000(255, 255, 1), PictureError),  # 65,025 tiles
        (lambda: jpeg_2000(16, 16, 16, 9), PictureError),  # 9 channels
    ],
)
def test_jpeg_2000_that_says_more_within_than_without(data: Callable[[], bytes], kind: type[PictureError]) -> None:
    assert open_picture(encode(Image.new("L", (16, 16)), "JPEG2000")).size == (16, 16)
    with pytest.raises(PictureError) as caught:
        open_picture(data())
    assert type(caught.value) is kind
