import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from caption_ray.evaluation import evaluate
from caption_ray.evaluation.metrics import CaptionScores, PictureScores
from caption_ray.evaluation.report import ReportRow, histogram, render_report, select_rows

SCORES = CaptionScores(
    bleu_1=0.6543,
    bleu_2=0.5,
    bleu_3=0.4,
    bleu_4=0.2127,
    cider=0.5678,
    rouge_l=0.45,
    num_pictures=1234,
    mean_words=9.84,
    mean_reference_words=10.9,
    unknown_share=0.0312,
)


def row(name: str, cider: float, predicted: str = "a dog runs", references: tuple = ("a dog",)) -> ReportRow:
    scores = PictureScores(cider=cider, bleu_4=0.25, rouge_l=0.5)
    return ReportRow(name, f"jpeg of {name}".encode(), predicted, references, scores, -7.26)


def test_thumbnail_carries_nothing_but_the_picture() -> None:
    picture = Image.new("RGB", (600, 300), "red")
    for comment in (b"taken at home", b"x" * 70_000):  # a JPEG cannot carry the second
        picture.info["comment"] = comment
        thumbnail = Image.open(io.BytesIO(evaluate._thumbnail(picture)))
        assert "comment" not in thumbnail.info
        assert max(thumbnail.size) < 600


class Page(HTMLParser):
    """What a browser would find: all elements, and the text without that of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data + " "

    def all(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == wanted]


def test_pictures_stand_from_best_to_worst_with_their_bytes_and_captions() -> None:
    rows = [row("low.jpg", 0.1, "a cat"), row("high.jpg", 2.5, "a dog"), row("mid.jpg", 1.0, "a cow")]
    page = Page(render_report("Dev", SCORES, rows, {}))
    images = page.all("img")
    assert [image["alt"] for image in images] == ["a dog", "a cow", "a cat"]
    assert {image["loading"] for image in images} == {"lazy"}
    prefix, content = (images[0]["src"] or "").split(",")
    assert prefix == "data:image/jpeg;base64"
    assert base64.b64decode(content) == b"jpeg of high.jpg"
    assert "All 3 are shown." in page.text


def test_scores_and_settings_are_shown_rounded() -> None:
    text = Page(render_report("Dev", SCORES, [row("x.jpg", 0.567)], {"beam_width": "5"})).text
    words = text.split()
    for shown in ("0.654", "0.213", "0.568", "1,234", "9.8", "3.1", "beam_width", "0.57", "-7.3"):
        assert shown in words, shown


def test_text_from_outside_is_shown_and_never_run() -> None:
    evil = "<script>alert('x')</script> & \"more\""
    rows = [row(f"{evil}.jpg", 1.0, evil, (evil,))]
    page = Page(render_report(evil, SCORES, rows, {evil: evil}))
    assert len(page.all("script")) == 1
    assert page.all("img")[0]["alt"] == evil
    # Title, heading, a setting and its value, predicted caption, reference, file name.
    assert page.text.count(evil) == 7


def test_the_page_asks_nothing_of_the_network() -> None:
    html = render_report("Dev", SCORES, [row("x.jpg", 1.0)], {"bundle": "gs://bucket/bundle"})
    page = Page(html)
    assert not page.all("link")
    for _, attributes in page.elements:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in html
    assert "http" not in html.replace("http-equiv", "")


@pytest.mark.parametrize(("num_rows", "num_shown"), [(400, 400), (401, 300), (1000, 300)])
def test_long_lists_are_cut_to_best_middle_and_worst(num_rows: int, num_shown: int) -> None:
    ranked = [row(f"{number}.jpg", 9 - number / 1000) for number in range(num_rows)]
    shown = [int(one.name.removesuffix(".jpg")) for one in select_rows(ranked)]
    assert len(shown) == num_shown
    assert shown == sorted(set(shown))
    assert shown[:100] == list(range(100))
    assert shown[-100:] == list(range(num_rows - 100, num_rows))


def test_the_middle_is_taken_evenly_and_the_page_says_what_is_left_out() -> None:
    rows = [row(f"{number:04}.jpg", 9 - number / 1000) for number in range(1100)]
    assert [int(one.name[:4]) for one in select_rows(rows)][100:103] == [104, 113, 122]
    page = Page(render_report("Dev", SCORES, list(reversed(rows)), {}))
    assert len(page.all("img")) == 300
    assert "300 of 1,100 are shown" in page.text


def test_histogram_counts_each_value_once_in_bins_of_round_width() -> None:
    bars = histogram([0.0, 0.05, 0.3, 1.04])  # 0.05 is the finest width that leads to under 25 bins
    assert [(round(bar.low, 2), bar.count) for bar in bars if bar.count] == [
        (0.0, 1),
        (0.05, 1),
        (0.3, 1),
        (1.0, 1),
    ]
    assert len(bars) == 21
    assert bars[0].height == bars[-1].height == 150
    assert bars[0].x == 0
    assert bars[-1].x + bars[-1].width == pytest.approx(720)


def test_histogram_of_the_extremes() -> None:
    assert histogram([]) == []
    assert [bar.count for bar in histogram([0.0, 0.0])] == [2]
    assert len(histogram([10.0, 0.0])) == 21
    assert sum(bar.count for bar in histogram([number / 10 for number in range(101)])) == 101


def test_a_report_without_pictures_still_renders() -> None:
    page = Page(render_report("Empty", SCORES, [], {}))
    assert page.all("svg") == []
    assert "All 0 are shown." in page.text
