import numpy as np
import pytest
from PIL import Image, ImageFont

from caption_ray import attention_figure
from caption_ray.attention_figure import GAP, LABEL_HEIGHT, MARGIN, TILE, draw_attention


def one_hot(row: int, column: int, side: int = 7) -> np.ndarray:
    grid = np.zeros((side, side), dtype=np.float32)
    grid[row, column] = 1
    return grid


def tile(sheet: Image.Image, row: int, column: int, size: tuple[int, int] = (TILE, TILE)) -> np.ndarray:
    left = MARGIN + column * (size[0] + GAP)
    top = MARGIN + row * (size[1] + LABEL_HEIGHT + GAP)
    return np.asarray(sheet.crop((left, top, left + size[0], top + size[1]))).astype(int)


def redness(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] - pixels[..., 2]


def test_the_warm_spot_lies_where_the_model_looked() -> None:
    attention = np.stack([one_hot(0, 6), one_hot(5, 1)])
    sheet = draw_attention(Image.new("RGB", (224, 224), "grey"), ["left", "right"], attention)
    for column, (grid_row, grid_column) in ((1, (0, 6)), (2, (5, 1))):
        warm = redness(tile(sheet, 0, column))
        y, x = np.unravel_index(np.argmax(warm), warm.shape)
        assert (y * 7 // TILE, x * 7 // TILE) == (grid_row, grid_column)
        assert (warm[: TILE // 2, : TILE // 2] == 0).all()  # far from both spots the picture stays grey


def test_first_tile_is_the_picture_and_the_others_are_grey_below_the_overlay() -> None:
    sheet = draw_attention(Image.new("RGB", (64, 64), (10, 200, 30)), ["x"], one_hot(6, 6)[None])
    assert (tile(sheet, 0, 0) == (10, 200, 30)).all()
    corner = tile(sheet, 0, 1)[0, 0]
    assert corner[0] == corner[1] == corner[2]


def test_each_map_is_coloured_relative_to_its_own_peak() -> None:
    sharp = one_hot(3, 3)
    flat = np.full((7, 7), 0.5 / 48)
    flat[3, 3] = 0.5
    sheet = draw_attention(Image.new("RGB", (70, 70), "white"), ["a", "b"], np.stack([sharp, flat]))
    peaks = [redness(tile(sheet, 0, column)).max() for column in (1, 2)]
    assert peaks[0] == pytest.approx(peaks[1], abs=3)


def label(word: str) -> np.ndarray:
    sheet = draw_attention(Image.new("RGB", (100, 100)), [word], one_hot(0, 0)[None])
    return np.asarray(sheet.crop((MARGIN + TILE + GAP, MARGIN + TILE, sheet.width, sheet.height)))


def test_letters_beyond_ascii_are_drawn_as_such_or_without_their_accents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_figure, "_MANY_SCRIPTS", "absent.ttf")
    assert np.array_equal(label("café"), label("cafe"))
    monkeypatch.undo()
    try:
        ImageFont.truetype("DejaVuSans.ttf", 10)
    except OSError:
        pytest.skip("no font of many scripts is installed")
    drawn = [label(word) for word in ("café", "cafè", "кот", "тон")]
    assert len({picture.tobytes() for picture in drawn}) == 4  # no two are the same boxes


@pytest.mark.parametrize(
    ("num_words", "columns", "rows"), [(0, 1, 1), (1, 2, 1), (5, 6, 1), (6, 4, 2), (11, 6, 2), (12, 5, 3)]
)
def test_tiles_fill_rows_of_at_most_six(num_words: int, columns: int, rows: int) -> None:
    attention = np.full((num_words, 7, 7), 1 / 49)
    sheet = draw_attention(Image.new("RGB", (100, 100)), ["word"] * num_words, attention)
    assert sheet.mode == "RGB"
    assert sheet.width == 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    assert sheet.height == 2 * MARGIN + rows * (TILE + LABEL_HEIGHT) + (rows - 1) * GAP


@pytest.mark.parametrize(
    ("size", "tile_size"), [((500, 250), (192, 96)), ((333, 500), (128, 192)), ((30, 20), (192, 128))]
)
def test_the_aspect_ratio_is_kept(size: tuple[int, int], tile_size: tuple[int, int]) -> None:
    sheet = draw_attention(Image.new("RGB", size, "blue"), ["x"], one_hot(0, 0)[None])
    assert (tile(sheet, 0, 0, tile_size) == (0, 0, 255)).all()
    right_of_it = sheet.getpixel((MARGIN + tile_size[0], MARGIN))
    below_it = sheet.getpixel((MARGIN, MARGIN + tile_size[1]))
    assert right_of_it == below_it == (255, 255, 255)


@pytest.mark.parametrize(("mode", "size"), [("L", (9, 7)), ("P", (50, 1)), ("RGBA", (1, 400)), ("CMYK", (5, 5))])
def test_other_modes_and_extreme_sizes_are_drawn(mode: str, size: tuple[int, int]) -> None:
    sheet = draw_attention(Image.new(mode, size), ["word"], one_hot(1, 1, side=3)[None])
    assert sheet.mode == "RGB"
    assert sheet.height == 2 * MARGIN + max(1, round(size[1] * TILE / max(size))) + LABEL_HEIGHT


def test_a_label_stays_within_its_own_column() -> None:
    sheet = draw_attention(Image.new("RGB", (192, 192)), ["w" * 60, "x"], np.full((2, 7, 7), 1 / 49))
    pixels = np.asarray(sheet)[MARGIN + TILE :]
    edge = MARGIN + TILE + GAP
    assert (pixels[:, edge : edge + TILE] < 200).any()
    for gap_start in (edge - GAP, edge + TILE):
        assert (pixels[:, gap_start + 1 : gap_start + GAP - 1] == 255).all()


def test_words_and_maps_must_be_as_many() -> None:
    with pytest.raises(AssertionError, match="2 words, 1 attention maps"):
        draw_attention(Image.new("RGB", (8, 8)), ["a", "b"], one_hot(0, 0)[None])
    with pytest.raises(AssertionError, match=r"attention is \(T, side, side\)"):
        draw_attention(Image.new("RGB", (8, 8)), ["a"], np.zeros((1, 49)))
