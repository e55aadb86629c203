import io
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from caption_ray.data.images import open_picture
from caption_ray.data.picture_layout import MAX_LOOSE_BYTES, MAX_PARTS, check_layout
from caption_ray.errors import PictureError

PICTURE = Image.effect_noise((40, 30), 90).convert("RGB")
SIZE = 10 << 20


def encode(kind: str, picture: Image.Image = PICTURE, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))


JPEG, PNG, GIF, JP2, PPM = (encode(kind) for kind in ("JPEG", "PNG", "GIF", "JPEG2000", "PPM"))
IN_JPEG, IN_PNG, IN_JP2, IN_PPM = 2, 33, 12, 3
IN_GIF = GIF.index(b"\x21\xf9") if b"\x21\xf9" in GIF else GIF.index(b"\x2c", 13 + 768)

MANY_PARTS = {
    "segments": (JPEG, IN_JPEG, b"\xff\xe5\x00\x02", b""),
    "tables": (JPEG, IN_JPEG, b"\xff\xdb\x00\x02", b""),
    "segments without a length": (JPEG, IN_JPEG, b"\xff\xf0", b""),
    "segments shorter than their length": (JPEG, IN_JPEG, b"\xff\xe5\x00\x00", b""),
    "chunks": (PNG, IN_PNG, chunk(b"prVt"), b""),
    "chunks behind": (PNG, len(PNG) - 12, chunk(b"prVt"), b""),
    "comments": (GIF, IN_GIF, b"\x21\xfe\x00", b""),
    "blocks of a comment": (GIF, IN_GIF, b"\x01a", b"\x21\xfe"),
    "boxes": (JP2, IN_JP2, struct.pack(">I", 8) + b"free", b""),
    "boxes in the header": (JP2, JP2.index(b"jp2h") + 4, struct.pack(">I", 8) + b"free", b""),
}
LOOSE_BYTES = {
    "fill": (JPEG, IN_JPEG, b"\xff", b""),
    "escapes": (JPEG, IN_JPEG, b"\xff\x00", b""),
    "restarts": (JPEG, IN_JPEG, b"\xff\xd0", b""),
    "junk": (JPEG, IN_JPEG, b"\x01", b""),
    "spaces": (PPM, IN_PPM, b" ", b""),
    "comments": (PPM, IN_PPM, b"#\n", b""),
    "one comment": (PPM, IN_PPM, b"a", b"#"),
    "spaces in a bitmap": (encode("PPM", PICTURE.convert("1")), IN_PPM, b" ", b""),
}


def with_many(data: bytes, place: int, unit: bytes, begin: bytes) -> bytes:
    return data[:place] + begin + unit * (SIZE // len(unit)) + data[place:]


@pytest.mark.parametrize("name", MANY_PARTS)
def test_many_parts_are_refused_at_once(name: str) -> None:
    check_at_once(with_many(*MANY_PARTS[name]), f"more than {MAX_PARTS:,} parts")


@pytest.mark.parametrize("name", LOOSE_BYTES)
def test_many_bytes_between_the_parts_are_refused_at_once(name: str) -> None:
    check_at_once(with_many(*LOOSE_BYTES[name]), f"{MAX_LOOSE_BYTES:,} bytes and more")


def check_at_once(data: bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(PictureError, match=message):
        open_picture(data)
    assert time.monotonic() - started < 2  # Pillow takes 2 to 10 s on an idle machine


@pytest.mark.parametrize(
    "data",
    [
        encode("JPEG", icc_profile=bytes(250 * 65_000), exif=bytes(60_000), comment=bytes(60_000)),
        encode("JPEG", progressive=True),
        encode("PNG", Image.effect_noise((1200, 1200), 90), compress_level=0),
        encode("GIF", comment=bytes(100_000)),
        encode("PPM", PICTURE.convert("1").resize((4096, 4096))),
        encode("PPM", Image.new("L", (2048, 2048), 0x20)),  # spaces, all of it
        encode("PPM", Image.new("L", (2048, 2048), ord("7"))),
        JPEG[:20] + bytes(1000) + JPEG[20:],  # some cameras' files are padded
        PNG[:-12] + chunk(b"prVt") * 5000 + PNG[-12:],
        JP2,
    ],
    ids=["metadata", "progressive", "long", "comment", "bitmap", "spaces", "digits", "padded", "chunks", "jp2"],
)
def test_pictures_of_many_bytes_are_read(data: bytes) -> None:
    assert open_picture(data).width > 0


def test_chunks_of_some_kilobytes_may_be_any_number() -> None:
    """As a scan of 40 MB has them that is written in small pieces."""
    content = b"prVt" + bytes(4096)
    large = struct.pack(">I", 4096) + content + struct.pack(">I", zlib.crc32(content))
    started = time.monotonic()
    assert open_picture(PNG[:-12] + large * (MAX_PARTS + 1) + PNG[-12:]).size == PICTURE.size
    assert time.monotonic() - started < 2


def test_text_of_a_png_is_no_part_of_its_own_for_each_byte() -> None:
    information = PngImagePlugin.PngInfo()
    information.add_text("Comment", "a" * 100_000)
    assert open_picture(encode("PNG", pnginfo=information)).size == PICTURE.size


@given(st.sampled_from([JPEG, PNG, GIF, JP2, PPM]), st.integers(0, 2000), st.binary(max_size=60))
def test_broken_files_are_left_to_the_decoder(data: bytes, place: int, noise: bytes) -> None:
    check_layout(data[:place] + noise + data[place + len(noise) :])
    check_layout(data[:place])
