"""The page's example pictures, drawn: `python -m caption_ray.serve.example_pictures` writes them to static/examples."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from caption_ray.data.synthetic import Figure, Scene, paint

FOLDER = Path(__file__).parent / "static" / "examples"
SIZE = (480, 360)
OVERSAMPLING = 2  # drawn larger and scaled down, which smooths the edges
JPEG_QUALITY = 70
SEED = 0
SHAPES = {
    "shapes-1.jpg": Scene(Figure("red", "circle"), "left of", Figure("blue", "diamond")),
    "shapes-2.jpg": Scene(Figure("yellow", "diamond"), "above", Figure("purple", "bar")),
    "shapes-3.jpg": Scene(Figure("green", "bar"), "right of", Figure("black", "circle")),
    "shapes-4.jpg": Scene(Figure("blue", "circle"), "below", Figure("red", "bar")),
}

Colour = tuple[int, int, int]


def draw_examples() -> dict[str, Image.Image]:
    """Return every example by its file's name: the quick start's kind, which its model knows, and two scenes."""
    shapes = {
        name: paint(scene, np.random.default_rng([SEED, number]), scale=2)
        for number, (name, scene) in enumerate(SHAPES.items())
    }
    return {**shapes, "dog.jpg": draw_dog(), "boat.jpg": draw_boat()}


def write_examples(folder: Path) -> None:
    """Write the examples as JPEG files, a few kB each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw_examples().items():
        picture.save(folder / name, quality=JPEG_QUALITY, optimize=True, progressive=True)


def draw_dog() -> Image.Image:
    """Return a brown dog that runs to a red ball on grass."""
    sheet = _ramps([(0, (120, 178, 226)), (0.52, (214, 233, 240)), (0.521, (126, 172, 84)), (1, (70, 128, 48))])
    draw = ImageDraw.Draw(sheet)
    for left, top, right, bottom in ((-60, 130, 190, 260), (120, 146, 360, 260), (310, 124, 560, 260)):
        _ellipse(draw, (left, top, right, bottom), (92, 142, 78))
    _blocks(draw, [(0, 190, 480, 360)], (112, 164, 74))
    rng = np.random.default_rng(SEED)
    for x, y in zip(rng.uniform(0, 480, 260), rng.uniform(196, 356, 260), strict=True):
        _line(draw, [(x, y), (x + rng.uniform(-3, 3), y - rng.uniform(5, 11))], (86, 140, 54), 2)
    _ellipse(draw, (112, 282, 330, 306), (80, 126, 56))
    coat, shade, dark = (150, 92, 48), (120, 70, 36), (40, 28, 22)
    _line(draw, [(140, 206), (112, 176), (104, 150)], coat, 13)
    for hip, foot in (((158, 236), (126, 288)), ((262, 236), (300, 284))):
        _line(draw, [hip, foot], shade, 17)
    for hip, foot in (((172, 238), (186, 294)), ((246, 240), (240, 294))):
        _line(draw, [hip, foot], coat, 18)
    _ellipse(draw, (130, 184, 284, 254), coat)
    _line(draw, [(258, 206), (290, 168)], coat, 40)
    _ellipse(draw, (266, 126, 330, 184), coat)
    _ellipse(draw, (300, 144, 354, 178), coat)
    _ellipse(draw, (262, 130, 288, 186), shade)
    _ellipse(draw, (342, 146, 357, 160), dark)
    _ellipse(draw, (306, 142, 314, 150), dark)
    _ellipse(draw, (364, 264, 402, 302), (212, 44, 38))
    _ellipse(draw, (372, 271, 384, 281), (236, 116, 104))
    return _finish(sheet)


def draw_boat() -> Image.Image:
    """Return a sailing boat with white sails on the sea, the sun low behind it."""
    sheet = _ramps(
        [
            (0, (78, 92, 158)),
            (0.4, (246, 158, 104)),
            (0.6, (255, 214, 138)),
            (0.601, (198, 140, 118)),
            (1, (34, 58, 104)),
        ]
    )
    draw = ImageDraw.Draw(sheet)
    _ellipse(draw, (296, 146, 372, 222), (255, 240, 196))
    _blocks(draw, [(0, 216, 480, 232)], (196, 138, 118))
    rng = np.random.default_rng(SEED)
    for x, y in zip(rng.uniform(0, 480, 130), 220 + 138 * rng.uniform(0, 1, 130) ** 1.4, strict=True):
        length = (y - 200) / 5
        glitter = abs(x - 334) < (y - 205) * 0.35
        _line(draw, [(x - length, y), (x + length, y)], (255, 214, 150) if glitter else (92, 88, 124), 2)
    _line(draw, [(186, 66), (186, 248)], (70, 48, 40), 5)
    _polygon(draw, [(194, 72), (194, 236), (288, 236)], (250, 246, 238))
    _polygon(draw, [(178, 90), (178, 236), (104, 236)], (226, 216, 206))
    _polygon(draw, [(92, 246), (300, 246), (268, 284), (126, 284)], (132, 44, 40))
    _polygon(draw, [(92, 246), (300, 246), (296, 254), (98, 254)], (238, 226, 210))
    return _finish(sheet)


def _ramps(stops: list[tuple[float, Colour]]) -> Image.Image:
    """Return a sheet whose colour runs from stop to stop, heights from 0, the top, to 1."""
    width, height = (side * OVERSAMPLING for side in SIZE)
    at = np.linspace(0, 1, height)
    heights, colours = zip(*stops, strict=True)
    column = np.stack([np.interp(at, heights, channel) for channel in np.array(colours, float).T], axis=-1)
    return Image.fromarray(np.repeat(np.rint(column)[:, None].astype(np.uint8), width, axis=1))


def _finish(sheet: Image.Image) -> Image.Image:
    return sheet.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(0.4))


def _scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def _ellipse(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour) -> None:
    draw.ellipse(_scaled([box[:2], box[2:]]), fill=colour)


def _blocks(draw: ImageDraw.ImageDraw, boxes: list[tuple[float, float, float, float]], colour: Colour) -> None:
    for box in boxes:
        draw.rectangle(_scaled([box[:2], box[2:]]), fill=colour)


def _polygon(draw: ImageDraw.ImageDraw, corners: list[tuple[float, float]], colour: Colour) -> None:
    draw.polygon(_scaled(corners), fill=colour)


def _line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Colour, width: int) -> None:
    """Draw a line with round ends and corners."""
    draw.line(_scaled(points), fill=colour, width=width * OVERSAMPLING, joint="curve")
    for x, y in (points[0], points[-1]):
        _ellipse(draw, (x - width / 2, y - width / 2, x + width / 2, y + width / 2), colour)


if __name__ == "__main__":
    write_examples(FOLDER)
