import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from caption_ray.data.images import open_picture
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


def test_warnings_are_as_before_after_decoding_on_many_threads() -> None:
    odd = encode(Image.new("RGB", (64, 64)), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00")  # cut off
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        assert [image.size for image in pool.map(open_picture, [odd] * 200)] == [(64, 64)] * 200
        assert caught == []
        warnings.warn("heard", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["heard"]
