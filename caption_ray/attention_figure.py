"""One picture with the attention of every word of its caption, as a contact sheet to look at."""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

TILE = 192  # long side of a tile, pixels
MIN_CELL_WIDTH = 112  # room for a label below a narrow picture
TILES_PER_ROW = 6
GAP = 14
MARGIN = 18
LABEL_HEIGHT = 46
WORD_SIZE = 19
NOTE_SIZE = 13

WHITE = (255, 255, 255)
WORD_COLOUR = (24, 24, 28)
NOTE_COLOUR = (118, 118, 126)
# The dimmed picture below the overlay: shades of grey between these two.
DARKEST, BRIGHTEST = 35.0, 205.0
# Attention relative to the word's peak -> colour and opacity, from a clear picture over yellow to red.
LEVELS = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
COLOURS = np.array([(255, 240, 150), (255, 225, 90), (255, 170, 30), (240, 70, 25), (205, 15, 30)], float)
OPACITIES = np.array([0.0, 0.22, 0.46, 0.55, 0.6])

Floats = npt.NDArray[np.floating]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_MANY_SCRIPTS = "DejaVuSans.ttf"
"""A font that most systems have; Pillow's own has the letters of English alone."""


def draw_attention(picture: Image.Image, words: Sequence[str], attention: Floats) -> Image.Image:
    """Return an RGB sheet: the picture, then one tile per word that shows where the model looked for it.

    words: T strings.  attention: (T, side, side), not negative; each word's map sums to 1 over a grid that
    covers the whole picture.  Each map is coloured relative to its own peak, whose share of the whole
    stands below the word; an even map over 7 x 7 cells peaks at 2 %.
    """
    assert attention.ndim == 3, f"attention is (T, side, side), not {attention.shape}"
    assert len(words) == len(attention), f"{len(words)} words, {len(attention)} attention maps"
    base = _fit(picture)
    dimmed = _dim(base)
    labels = [("", "picture")] + [
        (word, f"peak {100 * float(grid.max()):.0f} %") for word, grid in zip(words, attention, strict=True)
    ]
    tiles = [base] + [_overlay(dimmed, grid) for grid in attention]
    return _arrange(tiles, labels)


def _fit(picture: Image.Image) -> Image.Image:
    """Scale a picture so that its long side is a tile's, up or down."""
    scale = TILE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _dim(picture: Image.Image) -> npt.NDArray[np.float64]:
    """Return the picture in muted grey, (height, width, 3), so that the overlay alone has colour."""
    grey = np.asarray(picture.convert("L"), dtype=np.float64) / 255
    return np.repeat((DARKEST + (BRIGHTEST - DARKEST) * grey)[..., None], 3, axis=2)


def _overlay(dimmed: npt.NDArray[np.float64], grid: Floats) -> Image.Image:
    """Return the dimmed picture under one word's map, smoothly enlarged."""
    height, width, _ = dimmed.shape
    relative = np.asarray(grid / max(float(grid.max()), 1e-12), dtype=np.float32)
    enlarged = Image.fromarray(relative).resize((width, height), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(enlarged, dtype=np.float64), 0, 1)  # bicubic overshoots a little
    colour = np.stack([np.interp(level, LEVELS, channel) for channel in COLOURS.T], axis=-1)
    opacity = np.interp(level, LEVELS, OPACITIES)[..., None]
    return Image.fromarray(np.rint(dimmed * (1 - opacity) + colour * opacity).astype(np.uint8))


def _arrange(tiles: Sequence[Image.Image], labels: Sequence[tuple[str, str]]) -> Image.Image:
    """Lay tiles out in rows of like length, each with its word and its note centred below it."""
    num_rows = math.ceil(len(tiles) / TILES_PER_ROW)
    num_columns = math.ceil(len(tiles) / num_rows)
    tile_width, tile_height = tiles[0].size
    cell_width = max(tile_width, MIN_CELL_WIDTH)
    cell_height = tile_height + LABEL_HEIGHT
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + num_columns * cell_width + (num_columns - 1) * GAP,
            2 * MARGIN + num_rows * cell_height + (num_rows - 1) * GAP,
        ),
        WHITE,
    )
    draw = ImageDraw.Draw(sheet)
    note_font = ImageFont.load_default(NOTE_SIZE)
    for index, (tile, (word, note)) in enumerate(zip(tiles, labels, strict=True)):
        row, column = divmod(index, num_columns)
        left = MARGIN + column * (cell_width + GAP)
        top = MARGIN + row * (cell_height + GAP)
        sheet.paste(tile, (left + (cell_width - tile_width) // 2, top))
        centre, below = left + cell_width / 2, top + tile_height
        note_line = below + (38 if word else 18)
        shown, word_font = _drawable(word)
        draw.text((centre, below + 20), _shorten(shown, word_font, cell_width), WORD_COLOUR, word_font, "ms")
        draw.text((centre, note_line), note, NOTE_COLOUR, note_font, "ms")
    return sheet


def _drawable(word: str) -> tuple[str, Font]:
    """Return a font for the word, and the word, without its accents where no font here has them."""
    if word.isascii():
        return word, ImageFont.load_default(WORD_SIZE)
    try:
        return word, ImageFont.truetype(_MANY_SCRIPTS, WORD_SIZE)
    except OSError:
        plain = "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
        return plain, ImageFont.load_default(WORD_SIZE)


def _shorten(word: str, font: Font, width: int) -> str:
    """Return the word, or as much of it as fits into `width` pixels, with dots for the rest."""
    if font.getlength(word) <= width:
        return word
    kept = word
    while kept and font.getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."
