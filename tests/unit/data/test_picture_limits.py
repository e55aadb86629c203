import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from caption_ray.data.images import _PILLOWS_WARNINGS, open_picture
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


def test_limit_of_pixels_counts_each_scan_of_a_progressive_jpeg() -> None:
    data = encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    num_scans = data.count(b"\xff\xda")
    assert 5 < num_scans <= 20
    assert open_picture(data, max_pixels=64 * 64).size == (64, 64)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(TooManyPixelsError, match="21 scans of 64x64 pixels"):
        open_picture(data[:last] + data[last:-2] * (22 - num_scans) + data[-2:], max_pixels=64 * 64)


def test_only_the_formats_that_are_asked_for_are_read() -> None:
    data = encode(Image.new("RGB", (4, 4)), "GIF")
    assert open_picture(data, formats=("GIF", "PNG")).size == (4, 4)
    with pytest.raises(NotAPictureError):
        open_picture(data, formats=("PNG",))


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
