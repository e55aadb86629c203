"""Bytes of a picture to an array: the one definition that training, evaluation and serving share.

The whole picture is squeezed into a square, not cropped: captions speak of things at the edges. Values stay uint8 here;
scaling and normalisation belong to the encoder, so that they happen on its device.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from caption_ray import storage
from caption_ray.data.picture_layout import check_layout
from caption_ray.data.picture_limits import check_is_compiled, check_parts, check_pixels
from caption_ray.errors import NotAPictureError, PictureError, TooManyPixelsError, UsageError

PREPROCESSING = "exif-upright, rgb over white, bilinear antialiased square resize, uint8; v1"
"""Names what happens here; part of the key of cached features and of every bundle. Change it with the code."""

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused from their header (Pillow's own limit against decompression bombs)."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by EXIF's tag of orientation."""

_STRIP_PIXELS = 1 << 18
"""Pixels that are converted at once, where converting takes several times their memory."""

CROP_MARGIN = 1 / 8
"""Augmentation resizes to a side larger by this share, then takes a random crop."""

_SIDED_WORDS = re.compile(
    r"\b((left|right)(most|wards?|hand(ed|er|ers)?|y|ies)?|((anti|counter)-?)?clockwise)\b", re.IGNORECASE
)


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Decode a picture of any kind that Pillow reads: upright by EXIF, RGB, alpha laid over white, first frame.

    Palette, CMYK, grey and 16-bit grey pictures come out as RGB; of one colour that stands for transparency only 8-bit
    pictures are sure to be laid over white. May run on many threads at once.
    formats: Pillow's names of those to read, and then none of their variants that it decodes in Python, which would
    hold up all other threads; by default all.
    Raises PictureError with a one-line reason: NotAPictureError by the first bytes, TooManyPixelsError by the header,
    before anything is decoded.
    """
    if not data:
        raise NotAPictureError("the file is empty")
    try:
        _silence_pillow()
        check_layout(data)
        image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
        check_pixels(*image.size, max_pixels)
        check_parts(image, data, max_pixels)
        if formats is not None:
            check_is_compiled(image)
        image.load()
        turn = _turn(image)
        if turn is not None:
            image = image.transpose(turn)
        return _to_rgb(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(
            f"pixels over the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,}; save it smaller"
        ) from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken files; all mean the same here
        unknown = isinstance(error, UnidentifiedImageError) and not _has_signature(data, formats)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise (NotAPictureError if unknown else PictureError)(
            f"not a picture that can be decoded ({reason.split(' <_io')[0]})"
        ) from error


def _has_signature(data: bytes, formats: tuple[str, ...] | None) -> bool:
    """Tell whether the first bytes are those of a picture, though the rest is not."""
    found = (Image.OPEN[name.upper()][1] for name in formats or Image.ID if name.upper() in Image.OPEN)
    start = data[:16].ljust(16, b"\0")  # that of DIB unpacks four bytes, whether they are there or not
    return any(accept is not None and bool(accept(start)) for accept in found)


def _silence_pillow() -> None:
    """Ignore the warnings of Pillow's modules, and no others: of odd metadata in pictures that decode well.

    Filters are the process', not the thread's. `catch_warnings` around each decoding would silence all other threads
    too, and at its end undo what others have changed meanwhile. This filter is put first and stays, and is put there
    again only where somebody has put another before it, or a `catch_warnings` of theirs has taken it away.
    """
    if warnings.filters[:1] != [_PILLOWS_WARNINGS]:
        warnings.filterwarnings("ignore", module=_PILLOWS_WARNINGS[3].pattern)


_PILLOWS_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""As it stands among `warnings.filters`."""


def load_picture(location: str) -> Image.Image:
    """Read and decode a picture file or URI, as `open_picture` does. Raises PictureError naming it.

    That includes a URI that cannot be opened: where there are several pictures, the others may be fine.
    """
    try:
        return open_picture(storage.read_bytes(location))
    except UsageError as error:
        raise PictureError(str(error)) from error
    except FileNotFoundError as error:
        raise PictureError(f"{location}: no such file") from error
    except PictureError as error:
        raise PictureError(f"{location}: {error}") from error
    except OSError as error:
        raise PictureError(f"{location}: cannot be read ({error.strerror or error})") from error
    except UnicodeEncodeError as error:
        raise PictureError(f"{location!r}: its name is not UTF-8; rename it") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what turns the picture upright, by one tag: whatever else is in its EXIF may be broken without harm."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in open_picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _convert_strips(image, lambda strip: _scale(strip, 65535.0))
    if image.mode in ("I", "F"):
        # They do not say what their white is.
        brightest = max(np.nan_to_num(np.asarray(strip, np.float64)).max(initial=0) for _, strip in _strips(image))
        # Of fractions up to 1 nothing would be left in 255 steps of 1: all of them were black.
        white = 1.0 if image.mode == "F" and brightest <= 1 else 255.0 if brightest <= 255 else 65535.0
        return _convert_strips(image, lambda strip: _scale(strip, white))
    if image.has_transparency_data:
        return _convert_strips(image, _lay_over_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale(image: Image.Image, top: float) -> Image.Image:
    """Return grey of up to `top` at 8 bits. Pillow's own conversion clips at 255, which turns such pictures white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    return Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))


def _lay_over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _convert_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a picture to RGB a few rows at a time, so that what lies in between takes no memory to speak of."""
    whole = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip).convert("RGB"), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    num_rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, num_rows):
        yield top, image.crop((0, top, image.width, min(top + num_rows, image.height)))


def inspect_picture(data: bytes) -> tuple[int, int]:
    """Decode a picture in full and return its upright (width, height). Raises PictureError."""
    return open_picture(data).size


def to_square(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """Return the whole RGB picture as (3, side, side), uint8."""
    return np.ascontiguousarray(_square(image, side))


def _square(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """Return the same, channels last in memory."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
    return pixels


def decode_square(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Return the picture in `data` as (3, side, side), uint8. Raises PictureError."""
    return to_square(open_picture(data), side)


def decode_squares(pictures: Sequence[bytes], side: int) -> npt.NDArray[np.uint8]:
    """Return many pictures as (P, 3, side, side), uint8, each put into its place at once. Raises PictureError."""
    squares = np.empty((len(pictures), 3, side, side), dtype=np.uint8)
    for square, data in zip(squares, pictures, strict=True):
        square[:] = _square(open_picture(data), side)
    return squares


def may_mirror(captions: Sequence[str]) -> bool:
    """Tell whether mirroring keeps every caption true: none of them speaks of left or right."""
    return not any(_SIDED_WORDS.search(caption) for caption in captions)


def seeded_generator(*parts: object) -> np.random.Generator:
    """Return a generator that depends on `parts` alone, alike in every process and on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def padded_side(side: int) -> int:
    """Return the side that `augment` wants for an output of `side` pixels."""
    return side + round(side * CROP_MARGIN)


def augment(
    picture: npt.NDArray[np.uint8], side: int, mirror: bool, generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Return a random (3, side, side) crop of a larger square picture, mirrored half the time if `mirror`."""
    margin = picture.shape[1] - side
    top, left = generator.integers(0, margin + 1, size=2)
    return crop(picture, side, top, left, mirror and generator.random() < 0.5)


def crop(picture: npt.NDArray[np.uint8], side: int, top: int, left: int, mirrored: bool) -> npt.NDArray[np.uint8]:
    """Return a (3, side, side) window of a picture, mirrored or not, as a copy."""
    window = picture[:, top : top + side, left : left + side]
    return np.ascontiguousarray(window[:, :, ::-1]) if mirrored else window.copy()
