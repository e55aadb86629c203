"""A small captioned picture set that needs no download: two coloured shapes and how they lie to each other.

Written in the very layout of the Kaggle download of Flickr8k, so it takes the same way as real data.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from caption_ray.errors import UsageError

MIN_PICTURES = 20
SIDE = 224
OVERSAMPLING = 2  # drawn larger and scaled down, which smooths the edges
JPEG_QUALITY = 90

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 38),
    "blue": (36, 72, 208),
    "green": (34, 150, 62),
    "yellow": (242, 200, 24),
    "purple": (136, 44, 160),
    "black": (28, 28, 30),
}
# Corners as (radius, angle) in units of the shape's size and degrees, 0 at the top; a circle has none.
# The outlines are unlike enough for an encoder with random weights: it would take squares for circles.
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "bar": ((1.25, 70), (1.25, 110), (1.25, 250), (1.25, 290)),
    "diamond": ((1.3, 0), (0.7, 90), (1.3, 180), (0.7, 270)),
}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# One word per colour, shape and relation: whoever sees the picture can get every 4-gram right, and few
# 4-grams are free of what the picture shows.
TEMPLATES = (
    "a {one} is {relation} a {other}",
    "a {other} is {opposite} a {one}",
    "there is a {one} {relation} a {other}",
    "there is a {other} {opposite} a {one}",
    "a {one} {relation} a {other}",
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """One drawn shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `one` is `relation` `other`, say a red circle above a blue bar."""

    one: Figure
    relation: str
    other: Figure

    def captions(self) -> list[str]:
        """Return five different sentences, all true of the scene."""
        return [
            template.format(one=self.one, other=self.other, relation=self.relation, opposite=OPPOSITES[self.relation])
            for template in TEMPLATES
        ]


def write_synthetic_flickr8k(folder: str | Path, num_pictures: int, seed: int) -> None:
    """Write `Images/*.jpg`, `captions.txt` and the three split lists (8 : 1 : 1) to a local folder.

    Picture number n depends on `seed` and n alone, so a larger set begins with the smaller one. What an
    earlier call left in the folder is replaced. Raises UsageError below 20 pictures, where a split would be
    too small to mean anything.
    """
    if num_pictures < MIN_PICTURES:
        raise UsageError(f"{num_pictures} pictures are too few to split: ask for at least {MIN_PICTURES}")
    root = Path(folder)
    images = root / "Images"
    images.mkdir(parents=True, exist_ok=True)
    for stale in images.glob("synthetic_*.jpg"):
        stale.unlink()
    rows: list[tuple[str, str]] = []
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number in range(num_pictures):
        rng = np.random.default_rng([seed, number])
        name = f"synthetic_{number:05d}.jpg"
        scene = draw_scene_at_random(rng)
        paint(scene, rng).save(images / name, quality=JPEG_QUALITY)
        rows.extend((name, caption) for caption in scene.captions())
        splits[{8: "dev", 9: "test"}.get(number % 10, "train")].append(name)
    with (root / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "caption"))
        writer.writerows(rows)
    for split, names in splits.items():
        (root / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")


def draw_scene_at_random(rng: np.random.Generator) -> Scene:
    """Return a scene of two figures that differ in colour, in shape or in both."""
    figures = [Figure(colour, shape) for colour in COLOURS for shape in SHAPES]
    one, other = rng.choice(len(figures), size=2, replace=False)
    return Scene(figures[one], str(rng.choice(list(OPPOSITES))), figures[other])


def paint(scene: Scene, rng: np.random.Generator, scale: int = 1) -> Image.Image:
    """Return the scene as an RGB picture of 224 * scale pixels a side.

    Places, sizes, tilts and tints vary with `rng`.
    """
    side, zoom = SIDE * scale, OVERSAMPLING * scale
    sheet = _background(rng)
    canvas = sheet.resize((SIDE * zoom,) * 2, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    for figure, (x, y) in zip((scene.one, scene.other), _places(scene.relation, rng), strict=True):
        x, y = x * zoom, y * zoom
        size = float(rng.uniform(33, 38)) * zoom
        tint = rng.integers(-14, 15, size=3)
        red, green, blue = (int(v) for v in np.clip(np.array(COLOURS[figure.colour]) + tint, 0, 255))
        corners = _corners(figure.shape, size, tilt=float(rng.uniform(-6, 6)))
        if corners:
            draw.polygon([(x + dx, y + dy) for dx, dy in corners], fill=(red, green, blue))
        else:
            draw.ellipse((x - size, y - size, x + size, y + size), fill=(red, green, blue))
    smooth = canvas.reduce(OVERSAMPLING)
    grain = rng.normal(0, 3, size=(side, side, 1))
    return Image.fromarray(_as_bytes(np.asarray(smooth) + grain))


def _background(rng: np.random.Generator) -> Image.Image:
    """Return a light picture whose tint runs from one corner or side to the other."""
    start, end = rng.uniform(205, 255, size=(2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.linspace(-0.5, 0.5, SIDE)
    ramp = 0.5 + (steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle)) / math.sqrt(2)
    return Image.fromarray(_as_bytes(start + ramp[..., None] * (end - start)))


def _places(relation: str, rng: np.random.Generator) -> tuple[Point, Point]:
    """Return the centres of both figures, pixels.

    Along the relation they are 102 to 122 pixels apart, across it at most 28, so that it cannot be mistaken;
    no two shapes touch, and none leaves the picture.
    """
    near = 0.25 * SIDE + float(rng.uniform(-5, 5))
    far = 0.75 * SIDE + float(rng.uniform(-5, 5))
    along = (near, far) if relation in ("left of", "above") else (far, near)
    middle = SIDE / 2 + float(rng.uniform(-30, 30))
    across = (middle + float(rng.uniform(-14, 14)), middle + float(rng.uniform(-14, 14)))
    if relation in ("left of", "right of"):
        return (along[0], across[0]), (along[1], across[1])
    return (across[0], along[0]), (across[1], along[1])


def _corners(shape: str, size: float, tilt: float) -> list[Point]:
    """Return a shape's corners around (0, 0), pixels, y downwards; `tilt` is in degrees."""
    corners = []
    for radius, degrees in SHAPES[shape]:
        angle = math.radians(degrees + tilt)
        corners.append((size * radius * math.sin(angle), -size * radius * math.cos(angle)))
    return corners


def _as_bytes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
