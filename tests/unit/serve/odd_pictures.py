"""Picture files that tests send: good ones, odd ones and hostile ones, all made here."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin, features


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def animate(kind: str, **options: object) -> bytes:
    """Return three pictures in one file, the first of them `noise()`."""
    return encode(noise(), kind, save_all=True, append_images=[noise(seed=1), noise(seed=2)], **options)


def png(width: int = 40, height: int = 30) -> bytes:
    return encode(noise(width, height), "PNG")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def png_without_pixels(width: int, height: int) -> bytes:
    return png_header(width, height) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png_bomb(width: int, height: int) -> bytes:
    """A whole grey picture of zeros, a thousandth of its pixels in size."""
    size = (width + 1) * height  # a row begins with its filter
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated as it is
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(size % (1 << 20))) + packer.flush()
    checksum = struct.pack(">I", (size % 65_521) << 16 | 1)  # Adler-32 of zeros
    data = b"\x78\xda" + block * (size >> 20) + rest + checksum
    return png_header(width, height) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ico_around(picture: bytes) -> bytes:
    """An icon that says 1x1 and holds a PNG, or a bitmap, of any size."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 1, 1, 0, 0, 1, 32, len(picture), 22) + picture


def many_scans(side: int, num_scans: int) -> bytes:
    """A grey progressive JPEG whose last scan, some bytes long, is there many times over."""
    whole = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * num_scans + b"\xff\xd9"


def scans_by_channel(side: int, num_scans: int) -> bytes:
    """A JPEG of three channels, not progressive, with scans of one channel each, and the last one over and over."""
    grey = encode(Image.new("L", (side, side), 128), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    frame_of_three = b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0"
    scans = [b"\xff\xda\0\x08\1" + bytes([channel]) + grey[scan + 6 : -2] for channel in (1, 2, 3)]
    more = scans[-1][:12] * (num_scans - 3)  # cut off, which is made up for by grey
    return grey[:frame] + frame_of_three + grey[frame + 13 : scan] + b"".join(scans) + more + b"\xff\xd9"


def tiff(width: int, height: int, data: bytes = b"", **tags: int | list[int]) -> bytes:
    """A grey TIFF of 8 bits, with more tags, named as `tag_322`, before its data."""
    plain = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    table = plain | {int(name.removeprefix("tag_")): value for name, value in tags.items()}
    start = 8 + 2 + 12 * len(table) + 4
    directory, lists = struct.pack("<H", len(table)), b""
    for tag, value in sorted(table.items()):
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, lists = struct.pack("<I", start + len(lists)), lists + packed
        directory += struct.pack("<HHI", tag, 4, len(values)) + packed
    return struct.pack("<2sHI", b"II", 42, 8) + directory + bytes(4) + lists + data


def tiff_with_a_tile(width: int, height: int, **tags: int) -> bytes:
    """A TIFF of 16x16 whose only tile, of zeros and deflated, says another size. `tags` come beside or over its own."""
    data = zlib.compress(bytes(width * height))
    tags = {"tag_259": 8, "tag_322": width, "tag_323": height, "tag_324": 0, "tag_325": len(data)} | tags
    start = len(tiff(16, 16, **tags))
    return tiff(16, 16, data, **(tags | {"tag_324": start}))


def with_orientation(tags: list[tuple[int, int, int, int]]) -> bytes:
    """A JPEG that lies on its side by EXIF, whose other tags are (number, type, count, value or offset)."""
    table = sorted([(0x0112, 3, 1, 6), *tags])
    entries = b"".join(struct.pack("<HHII", *entry) for entry in table)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(table)) + entries + bytes(4)
    return encode(noise(), "JPEG", exif=exif)


def png_with_overlapping_tags(num_tags: int, num_bytes: int) -> bytes:
    """A PNG with EXIF whose tags are all the same bytes of it, so that reading them takes many times the file."""
    entries = b"".join(struct.pack("<HHII", 40_000 + tag, 1, num_bytes, 8) for tag in range(num_tags))
    directory = struct.pack("<H", num_tags) + entries + bytes(4)
    exif = struct.pack("<2sHI", b"II", 42, 8 + num_bytes) + bytes(num_bytes) + directory
    plain = png()
    return plain[:33] + chunk(b"eXIf", exif) + plain[33:]


ODD_TAGS = {
    "a text that is none": (0x010E, 12, 1, 0),
    "a fraction of whole numbers": (0x011A, 2, 4, 0),
    "a place outside": (0x8769, 4, 1, 1 << 30),
    "bytes outside": (0x927C, 7, 1 << 20, 1 << 20),
    "a version that is a number": (0x9000, 4, 1, 1),
}
"""EXIF as cameras and their owners' programs write it, (number, type, count, value or offset)."""


def good_pictures() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Return files that get a caption, and their upright sizes, by name."""
    plain = noise()
    rgba = Image.merge("RGBA", (*plain.split(), plain.split()[0]))
    palette = plain.quantize(8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 100_000)
    exif = Image.Exif()
    exif[0x010E] = "d" * 60_000
    jpeg = encode(plain, "JPEG")
    found = {
        "jpeg": (jpeg, plain.size),
        "jpeg, grey": (encode(plain.convert("L"), "JPEG"), plain.size),
        "jpeg, progressive": (encode(plain, "JPEG", progressive=True), plain.size),
        "jpeg, cmyk": (encode(plain.convert("CMYK"), "JPEG"), plain.size),
        "jpeg, icc profile of zeros": (encode(plain, "JPEG", icc_profile=bytes(3000)), plain.size),
        "jpeg, huge exif": (encode(plain, "JPEG", exif=exif), plain.size),
        "jpeg, comment of 60 kB": (encode(plain, "JPEG", comment=b"c" * 60_000), plain.size),
        "jpeg, then html": (jpeg + b"<html><script>alert(1)</script></html>", plain.size),
        "jpeg, then zip": (jpeg + b"PK\x03\x04" + bytes(100), plain.size),
        "jpeg, a scan for each channel": (scans_by_channel(24, 3), (24, 24)),
        "mpo, two frames": (animate("MPO"), plain.size),
        "png": (png(), plain.size),
        "png, alpha": (encode(rgba, "PNG"), plain.size),
        "png, grey and alpha": (encode(rgba.convert("LA"), "PNG"), plain.size),
        "png, palette, transparent": (encode(palette, "PNG", transparency=0), plain.size),
        "png, 1 bit": (encode(plain.convert("1"), "PNG"), plain.size),
        "png, 16 bit": (encode(Image.fromarray(np.full((7, 9), 40_000, np.uint16)), "PNG"), (9, 7)),
        "png, long text": (encode(plain, "PNG", pnginfo=text), plain.size),
        "png, animated": (animate("PNG", duration=50), plain.size),
        "png, interlaced and tiny": (encode(noise(1, 1), "PNG"), (1, 1)),
        "png, 30000x1": (encode(noise(30_000, 1), "PNG"), (30_000, 1)),
        "png, 1x30000": (encode(noise(1, 30_000), "PNG"), (1, 30_000)),
        "gif": (encode(palette, "GIF"), plain.size),
        "gif, animated": (animate("GIF", duration=50), plain.size),
        "webp": (encode(plain, "WEBP"), plain.size),
        "webp, lossless, alpha": (encode(rgba, "WEBP", lossless=True), plain.size),
        "webp, animated": (animate("WEBP", duration=50), plain.size),
        "bmp": (encode(plain, "BMP"), plain.size),
        "tiff": (encode(plain, "TIFF"), plain.size),
        "tiff, deflate": (encode(plain, "TIFF", compression="tiff_deflate"), plain.size),
        "tiff, 32 bit float, no numbers": (
            encode(Image.fromarray(np.full((7, 9), np.nan, np.float32)), "TIFF"), (9, 7)
        ),
        "tiff, 32 bit float": (encode(Image.fromarray(np.ones((7, 9), np.float32)), "TIFF"), (9, 7)),
        "tiff, two pages": (animate("TIFF"), plain.size),
        "tiff, tiles": (tiff(16, 16, bytes(256), tag_322=16, tag_323=16, tag_324=134, tag_325=256), (16, 16)),
        "ppm": (encode(plain, "PPM"), plain.size),
        "bytes before the end are missing": (png()[:-12], plain.size),
    }  # fmt: skip
    for name, tag in ODD_TAGS.items():
        found[f"jpeg on its side, exif with {name}"] = (with_orientation([tag]), plain.size[::-1])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = plain.size if orientation < 5 else plain.size[::-1]
        found[f"jpeg, orientation {orientation}"] = (encode(plain, "JPEG", exif=exif), size)
    return found


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Return files that get none, and the code of the error, by name."""
    jpeg, plain = encode(noise(), "JPEG"), noise()
    broken, no_picture, too_many = "undecodable_picture", "not_a_picture", "too_many_pixels"
    found = {
        "empty": (b"", no_picture),
        "one byte": (b"\xff", no_picture),
        "zeros": (bytes(10_000), no_picture),
        "random": (np.random.default_rng(1).bytes(10_000), no_picture),
        "text": (b"a man on a horse\n" * 50, no_picture),
        "html": (b"<!doctype html><img src=x onerror=alert(1)>", no_picture),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>', no_picture),
        "svg of a url": (b'<svg><image href="http://127.0.0.1:1/x.png"/></svg>', no_picture),
        "pdf": (encode(plain, "PDF"), no_picture),
        "zip": (b"PK\x03\x04" + bytes(200), no_picture),
        "html, then jpeg": (b"<html></html>" + jpeg, no_picture),
        "eps, which starts a program": (encode(plain, "EPS"), no_picture),
        "psd, not among the kinds": (b"8BPS\x00\x01" + bytes(40), no_picture),
        "url": (b"http://127.0.0.1/picture.jpg", no_picture),
        "png, 30000x30000 zeros": (png_bomb(30_000, 30_000), too_many),
        "png, header of 65535x65535": (png_without_pixels(65_535, 65_535), too_many),
        "png, header of 2**31-1": (png_without_pixels(2**31 - 1, 2**31 - 1), too_many),
        "png, header of 0x0": (png_header(0, 0), broken),
        "gif, header of 65535x65535": (_gif(65_535, 65_535), too_many),
        "bmp, header of 60000x60000": (_with_size(encode(plain, "BMP"), 60_000, 60_000), too_many),
        "ico, not among the kinds": (encode(plain.resize((16, 16)), "ICO", sizes=[(16, 16)]), no_picture),
        "ico around 20000x20000": (ico_around(png_without_pixels(20_000, 20_000)), no_picture),
        "jpeg of 4000 scans": (many_scans(2_000, 4_000), too_many),
        "jpeg of 9000 scans, not progressive": (scans_by_channel(2_048, 9_000), too_many),
        "tiff of one large tile": (tiff_with_a_tile(16_384, 12_288), too_many),
        "tiff of strips and a tile's size": (tiff_with_a_tile(16_384, 12_288, tag_273=8, tag_279=8), too_many),
        "tiff of 100,000 tiles": (
            tiff(1000, 100, tag_322=1, tag_323=1, tag_324=[8] * 100_000, tag_325=[1] * 100_000), broken
        ),
        "ppm, written as text": (b"P3 2 2 255 " + b"9 " * 12, broken),
        "ppm, up to 254": (b"P6 4 4 254 " + bytes(48), broken),
        "bmp, run lengths": (_run_lengths(), broken),
        "png, text bomb": (
            png_header(4, 4)
            + chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(70 << 20), 9))
            + chunk(b"IEND", b""),
            broken,
        ),
        "png, crc wrong": (png()[:40] + b"\x00" + png()[41:], broken),
        "riff that is no webp": (b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8 " + bytes(100), broken),
    }  # fmt: skip
    if features.check("jpg_2000"):
        found["jpeg 2000, not among the kinds"] = (encode(plain, "JPEG2000"), no_picture)
    if features.check("avif"):
        found["avif, not among the kinds"] = (encode(plain, "AVIF"), no_picture)
    for kind, file in (
        ("jpeg", jpeg),
        ("png", png()),
        ("webp", encode(plain, "WEBP")),
        ("tiff", encode(plain, "TIFF")),
    ):
        for share in (0.02, 0.1, 0.3, 0.6, 0.9):
            found[f"{kind}, cut at {share:.0%}"] = (file[: round(len(file) * share)], broken)
    return found


def _run_lengths() -> bytes:
    plain = encode(Image.new("L", (4, 4)), "BMP")
    start = struct.unpack_from("<I", plain, 10)[0]
    return plain[:30] + struct.pack("<I", 1) + plain[34:start] + b"\4\0\0\0" * 4 + b"\0\1"


def _with_size(bmp: bytes, width: int, height: int) -> bytes:
    return bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]


def _gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"
