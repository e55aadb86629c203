"""Bytes of a picture to a tensor: the one definition that training, evaluation and serving share.

The whole picture is squeezed into a square, not cropped: captions speak of things at the edges. Values stay uint8 here;
scaling and normalisation belong to the encoder, so that they happen on its device.
"""

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.IcoImagePlugin import IcoImageFile

from caption_ray import storage
from caption_ray.errors import NotAPictureError, PictureError, TooManyPixelsError, UsageError

PREPROCESSING = "exif-upright, rgb over white, bilinear antialiased square resize, uint8; v1"
"""Names what happens here; part of the key of cached features and of every bundle. Change it with the code."""

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused from their header (Pillow's own limit against decompression bombs)."""

_MAX_SCANS = 20
"""Times that a progressive JPEG may go over the largest picture's pixels; cameras and converters go 10 times."""

CROP_MARGIN = 1 / 8
"""Augmentation resizes to a side larger by this share, then takes a random crop."""

_SIDED_WORDS = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise)\b", re.IGNORECASE)


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Decode a picture of any kind that Pillow reads: upright by EXIF, RGB, alpha laid over white, first frame.

    Palette, CMYK, grey and 16-bit grey pictures come out as RGB. May run on many threads at once.
    formats: Pillow's names of those to read, by default all.
    Raises PictureError with a one-line reason: NotAPictureError by the first bytes, TooManyPixelsError by the header,
    before anything is decoded.
    """
    if not data:
        raise NotAPictureError("the file is empty")
    try:
        with _WITHOUT_WARNINGS:  # Pillow warns of odd metadata in pictures that decode well
            image = Image.open(io.BytesIO(data), formats=formats)
            _check_cost(image, data, max_pixels)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    except Exception as error:  # Pillow's plugins raise many kinds on broken files; all mean the same here
        unknown = isinstance(error, UnidentifiedImageError) and not _has_signature(data, formats)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise (NotAPictureError if unknown else PictureError)(
            f"not a picture that can be decoded ({reason.split(' <_io')[0]})"
        ) from error


def _check_cost(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Raise TooManyPixelsError where an opened, not yet decoded picture has too many pixels, or too many times over."""
    width, height = image.size
    if isinstance(image, IcoImageFile):  # says at most 256x256, whatever the picture within says
        width, height = image.ico.frame(image.ico.getentryindex(image.size)).size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width}x{height} pixels are over the limit of {max_pixels:,}")
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        # Each scan goes over all pixels, and may be a few bytes long.
        num_scans = data.count(b"\xff\xda")
        if num_scans * width * height > _MAX_SCANS * max_pixels:
            raise TooManyPixelsError(
                f"{num_scans} scans of {width}x{height} pixels are over the limit of {_MAX_SCANS} of {max_pixels:,}"
            )


def _has_signature(data: bytes, formats: tuple[str, ...] | None) -> bool:
    """Tell whether the first bytes are those of a picture, though the rest is not."""
    found = (Image.OPEN[name.upper()][1] for name in formats or Image.ID if name.upper() in Image.OPEN)
    return any(accept is not None and bool(accept(data[:16])) for accept in found)


class _WithoutWarnings:
    """Ignores all warnings of the process while any thread is within: `catch_warnings` is for one thread only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_within = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_within == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._num_within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_within -= 1
            if self._num_within == 0:
                self._caught.__exit__(None, None, None)


_WITHOUT_WARNINGS = _WithoutWarnings()


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow's own conversion clips 16-bit values at 255, which turns such pictures white.
        values = np.asarray(image, dtype=np.float64)
        # "I" and "F" do not say what their white is.
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def inspect_picture(data: bytes) -> tuple[int, int]:
    """Decode a picture in full and return its upright (width, height). Raises PictureError."""
    return open_picture(data).size


def to_square(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """Return the whole RGB picture as (3, side, side), uint8."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_square(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Return the picture in `data` as (3, side, side), uint8. Raises PictureError."""
    return to_square(open_picture(data), side)


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
    crop = picture[:, top : top + side, left : left + side]
    if mirror and generator.random() < 0.5:
        crop = crop[:, :, ::-1]
    return np.ascontiguousarray(crop)


def stack_pictures(pictures: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
    """Return pictures of one size as a (B, 3, side, side) uint8 tensor."""
    return torch.from_numpy(np.stack(pictures))
