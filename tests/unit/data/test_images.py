import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from caption_ray.data.images import (
    augment,
    decode_square,
    decode_squares,
    inspect_picture,
    load_picture,
    may_mirror,
    open_picture,
    padded_side,
    seeded_generator,
    to_square,
)
from caption_ray.errors import PictureError

Pixels = npt.NDArray[np.uint8]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def pixels(data: bytes) -> Pixels:
    image = open_picture(data)
    assert image.mode == "RGB"
    return np.asarray(image)


# As the person saw it, and as a camera held in each of the eight ways stores it (EXIF 2.3, tag 0x0112).
UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation])), exif=exif)
    assert np.array_equal(pixels(data), UPRIGHT)
    assert inspect_picture(data) == (3, 2)


def test_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image)).tolist() == [[list(RED), list(BLUE)]]


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, transparency=0)).tolist() == [[list(WHITE), list(BLUE)]]


@pytest.mark.parametrize(("kind", "tolerance"), [("TIFF", 0), ("JPEG", 3)])
def test_cmyk(kind: str, tolerance: int) -> None:
    # Magenta and yellow ink make red, no ink is white.
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)):
        found = pixels(encode(Image.new("CMYK", (8, 8), ink), kind))
        assert np.abs(found.astype(int) - np.array(colour)).max() <= tolerance


def test_grey_with_and_without_alpha() -> None:
    assert pixels(encode(Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]
    # 51 / 255 = 0.2 of black over white
    assert pixels(encode(Image.new("LA", (1, 1), (0, 51)))).tolist() == [[[204, 204, 204]]]


def test_alpha_is_laid_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for column, colour in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 102)]):
        image.putpixel((column, 0), colour)
    # 102 / 255 = 0.4: 0.6 of the other channels' white remains
    assert pixels(encode(image)).tolist() == [[[255, 0, 0], [255, 255, 255], [255, 153, 153]]]


def test_16_bit_grey_keeps_its_range() -> None:
    values = np.array([[0, 257, 257 * 100, 65535]], dtype=np.uint16)
    found = pixels(encode(Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0, 1, 100, 255]
    assert np.array_equal(found[..., 0], found[..., 2])


def test_a_dark_16_bit_picture_stays_dark() -> None:
    values = np.array([[0, 255]], dtype=np.uint16)  # of 65535: less than a 257th, the step of 8 bits
    assert pixels(encode(Image.fromarray(values))).tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert pixels(encode(Image.fromarray(values * 2))).tolist() == [[[0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_grey_is_taken_by_its_brightest_value(kind: type) -> None:
    for top in (255, 65535):
        found = pixels(encode(Image.fromarray(np.array([[0, top // 5, top]], dtype=kind)), "TIFF"))
        assert found[0, :, 0].tolist() == [0, 51, 255]


def test_fractions_are_grey_up_to_1() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0.0, 0.25, 1.0]], np.float32)).save(file, "TIFF")
    assert np.asarray(open_picture(file.getvalue()))[0, :, 0].tolist() == [0, 63, 255]


def test_1_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(encode(image)).tolist() == [[list(BLACK), list(WHITE)]]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert pixels(data)[2, 2].tolist() == list(RED)


def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"a man on a horse\n", "not a picture that can be decoded"),
        (jpeg()[:-900], "truncated"),
        (jpeg()[:100], "not a picture that can be decoded"),
        (b"\x89PNG\r\n\x1a\n", "not a picture that can be decoded"),
        (b"\n", "not a picture that can be decoded"),
        (b"abc", "not a picture that can be decoded"),
    ],
    ids=["empty", "text", "truncated", "header", "signature", "a byte", "three bytes"],
)
def test_broken_pictures_have_a_one_line_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        open_picture(data)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://host/a.jpg", "http://host/a.jpg: not a location that can be opened"),
        ("absent.jpg", "absent.jpg: no such file"),
        (".", r"\.: cannot be read"),
        ("\udcff.jpg", r"'\\udcff\.jpg': its name is not UTF-8"),
    ],
)
def test_a_location_without_a_picture_is_a_picture_error(location: str, reason: str) -> None:
    with pytest.raises(PictureError, match=f"^{reason}"):
        load_picture(location)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is huge, without pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    data = b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("side", [14_000, 40_000])
def test_huge_pictures_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(PictureError, match="limit"):
        open_picture(png_header(side, side))


def test_the_whole_picture_is_squeezed() -> None:
    image = Image.new("RGB", (40, 10), RED)
    image.paste(BLUE, (30, 0, 40, 10))
    square = decode_square(encode(image), 8)
    assert (square.shape, square.dtype) == ((3, 8, 8), np.uint8)
    # The last quarter of the columns is blue; the two beside the border are mixed.
    assert square[:, :, :5].transpose(1, 2, 0).reshape(-1, 3).tolist() == [list(RED)] * 40
    assert square[:, :, 7].T.tolist() == [list(BLUE)] * 8
    assert square.flags["C_CONTIGUOUS"]


def test_squares_of_the_right_size_are_kept_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert np.array_equal(to_square(Image.fromarray(noise), 5), noise.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("captions", "allowed"),
    [
        (["a dog runs", "a brown dog on grass"], True),
        (["a dog runs", "the dog on the left runs"], False),
        (["Right of the tree stands a man ."], False),
        (["the leftmost man"], False),
        (["leftover food in a bright copyright office"], True),
        (["a wheel turns anticlockwise"], False),
        (["a wheel turns counter-clockwise"], False),
        (["he looks leftward"], False),
        (["a righthand bend"], False),
        ([], True),
    ],
)
def test_may_mirror(captions: list[str], allowed: bool) -> None:
    assert may_mirror(captions) is allowed


def test_augment_takes_every_window_and_mirrors_exactly() -> None:
    side, padded = 16, padded_side(16)
    assert padded == 18
    picture = np.arange(3 * padded * padded, dtype=np.uint16).reshape(3, padded, padded).astype(np.uint8)
    windows = {
        (top, left, mirrored): (picture[:, top : top + side, left : left + side][:, :, :: -1 if mirrored else 1])
        for top in range(3)
        for left in range(3)
        for mirrored in (False, True)
    }
    generator, seen = np.random.default_rng(0), set()
    for _ in range(300):
        crop = augment(picture, side, True, generator)
        assert crop.flags["C_CONTIGUOUS"]
        (place,) = [place for place, window in windows.items() if np.array_equal(crop, window)]
        seen.add(place)
    assert seen == set(windows)


def test_augment_does_not_mirror_unless_it_may() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    generator = np.random.default_rng(0)
    assert all(np.array_equal(augment(picture, 4, False, generator), picture) for _ in range(40))


def test_padded_side_of_224() -> None:
    assert padded_side(224) == 252


def test_seeded_generator_is_the_same_everywhere() -> None:
    assert seeded_generator(0, "a.jpg", 3).integers(0, 1000, 4).tolist() == [969, 43, 693, 284]
    assert seeded_generator("0", "a.jpg", "3").integers(0, 1000, 4).tolist() == [969, 43, 693, 284]


def test_seeded_generator_tells_its_parts_apart() -> None:
    drawn = {int(seeded_generator(*parts).integers(1 << 60)) for parts in ((1, 23), (12, 3), (123,), (1, 2, 3))}
    assert len(drawn) == 4


def test_many_pictures_are_decoded_as_each_by_itself() -> None:
    files = [encode(Image.effect_noise((width, 9), 80).convert("RGB")) for width in (7, 8, 20)]
    squares = decode_squares(files, 8)
    assert (squares.shape, squares.dtype, squares.flags.c_contiguous) == ((3, 3, 8, 8), np.uint8, True)
    assert all(np.array_equal(square, decode_square(file, 8)) for square, file in zip(squares, files, strict=True))
