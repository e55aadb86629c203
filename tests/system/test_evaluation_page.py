"""An evaluation's page, opened from disk in a real browser."""

import io
from pathlib import Path

import pytest
from browsing import Visit
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from caption_ray.evaluation.metrics import CaptionScores, PictureScores
from caption_ray.evaluation.report import ReportRow, render_report


def make_row(name: str, cider: float, predicted: str) -> ReportRow:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "JPEG")
    scores = PictureScores(cider=cider, bleu_4=0.25, rouge_l=0.5)
    return ReportRow(name, file.getvalue(), predicted, ("an animal outdoors",), scores, -7.26)


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Page:
    scores = CaptionScores(
        bleu_1=0.6, bleu_2=0.5, bleu_3=0.4, bleu_4=0.2, cider=0.5, rouge_l=0.45,
        num_pictures=3, mean_words=9.8, mean_reference_words=10.9, unknown_share=0.03,
    )  # fmt: skip
    rows = [
        make_row("a7.jpg", 0.9, "a dog"),
        make_row("b8.jpg", 0.1, "a dog on a log"),
        make_row("c9.jpg", 0.5, "cats"),
    ]
    (tmp_path / "report.html").write_text(render_report("Dev", scores, rows, {}))
    visit = Visit(browser, "file://")
    visit.page.goto((tmp_path / "report.html").as_uri())
    return visit.page


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("LOG", ["b8.jpg"]),
        ("a dog", ["a7.jpg", "b8.jpg"]),
        ("c9", ["c9.jpg"]),
        ("outdoors", ["a7.jpg", "c9.jpg", "b8.jpg"]),
        ("rouge", []),
        ("0.25", []),
    ],
)
def test_pictures_are_found_by_their_words_and_names_alone(page: Page, wanted: str, names: list[str]) -> None:
    page.locator("#filter").fill(wanted)
    expect(page.locator("#rows > li:visible .name")).to_have_text(names)


def test_order_is_as_asked_for(page: Page) -> None:
    names = page.locator("#rows .name")
    expect(names).to_have_text(["a7.jpg", "c9.jpg", "b8.jpg"])
    page.locator("#order").select_option("worst")
    expect(names).to_have_text(["b8.jpg", "c9.jpg", "a7.jpg"])
    page.locator("#order").select_option("name")
    expect(names).to_have_text(["a7.jpg", "b8.jpg", "c9.jpg"])
