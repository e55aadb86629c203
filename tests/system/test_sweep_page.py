"""A sweep's page, opened from disk in a real browser."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Visit
from playwright.sync_api import Browser, Page, expect

from caption_ray.presets import flickr8k
from caption_ray.tune.records import Status, TrialRecord
from caption_ray.tune.report import SweepView, render_sweep
from caption_ray.tune.search import TrialSearch, importances
from caption_ray.tune.space import settings_of, space_around
from caption_ray.tune.table import rank, summary

SPACE = space_around(flickr8k())
PRESET = settings_of(flickr8k())


def make_trials() -> list[TrialRecord]:
    """Twelve trials: the better their learning rate, the higher their curves; most are stopped at epoch 2 or 6."""
    search = TrialSearch(SPACE, "optuna", "cider", seed=1)
    trials = []
    for number in range(1, 13):
        settings = search.suggest(number, PRESET if number == 1 else None)
        top = 0.5 - 0.3 * abs(math.log10(settings["optimizer.learning_rate"]) + 2.9)
        last, status = ((10, "finished"), (2, "stopped"), (6, "stopped"))[number % 3 if number > 1 else 0]
        if number == 5:
            last, status = 3, "failed"
        scores = [top * (1 - 0.7 * math.exp(-0.5 * epoch)) for epoch in range(1, last + 1)]
        trials.append(make_trial(number, settings, scores, status))  # type: ignore[arg-type]
        search.tell(trials[-1])
    return trials


def make_trial(number: int, settings: dict[str, int | float], scores: list[float], status: Status) -> TrialRecord:
    epochs = tuple(
        {"epoch": float(epoch), "cider": score, "bleu_4": score * 0.4, "bleu_1": 0.5 + score / 5, "dev_loss": 3 - score}
        for epoch, score in enumerate(scores, 1)
    )
    error = "run 0005 failed: the gradient is not finite" if status == "failed" else None
    return TrialRecord(number=number, settings=settings, status=status, epochs=epochs, error=error)


@pytest.fixture(scope="module")
def trials() -> list[TrialRecord]:
    return make_trials()


@pytest.fixture(scope="module")
def report(trials: list[TrialRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sweep") / "report.html"
    page = render_sweep(
        SweepView(
            name="sample",
            summary=summary("sample", trials, 12, "cider"),
            metric="cider",
            space=SPACE,
            standings=rank(trials, "cider", PRESET),
            importances=importances(trials, SPACE, "cider"),
            command="python jobs/train.py flickr8k --data data/flickr8k --features features/mobilenet_v2 "
            "--storage runs --name sample-again --num-workers 1 --optimizer.learning-rate 0.0012 --model.dropout 0.41",
            facts={"Preset": "flickr8k", "Search": "optuna, seed 1"},
        )
    )
    file.write_text(page)
    return file


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    visit = Visit(browser, report.as_uri().removesuffix("/"), permissions=[])
    visit.page.goto(report.as_uri())
    yield visit.page
    assert visit.complaints == []
    assert visit.addresses == [report.as_uri()]
    visit.context.close()


def test_page_shows_winner_curves_settings_and_board(page: Page, trials: list[TrialRecord]) -> None:
    best = rank(trials, "cider", PRESET)[0]
    expect(
        page.get_by_role("heading", name=f"Trial {best.record.number} is best: CIDEr {best.score:.3f}")
    ).to_be_visible()
    assert page.locator("#curves .trial").count() == 12
    ends = {kind: page.locator(f"#curves .end.{kind}").count() for kind in ("finished", "stopped", "failed")}
    assert ends == {"finished": 5, "stopped": 6, "failed": 1}
    assert page.locator("#parallel .trial").count() == 12
    assert page.locator("#importance rect").count() == 7
    assert page.locator("#importance .chance").count() == 7
    assert "learning rate" in page.locator("#importance text").all_text_contents()
    rows = page.locator("#leaderboard tbody tr")
    assert rows.count() == 12
    scores = [float(row.locator("td").nth(2).inner_text()) for row in rows.all()]
    assert scores == sorted(scores, reverse=True)
    assert page.locator("tr:has-text('(preset)')").count() == 1
    expect(page.locator(".failure")).to_have_text("Trial 5 failed: run 0005 failed: the gradient is not finite")


def test_no_drawing_runs_out_of_its_box(page: Page) -> None:
    for name in ("curves", "parallel", "importance"):
        outside = page.evaluate(
            """(id) => {
                const svg = document.getElementById(id), box = svg.getBoundingClientRect();
                return [...svg.querySelectorAll("text, polyline:not(.reach), rect, circle, path")].filter((part) => {
                    const one = part.getBoundingClientRect();
                    return one.left < box.left - 1 || one.right > box.right + 1
                        || one.top < box.top - 1 || one.bottom > box.bottom + 1;
                }).map((part) => part.outerHTML);
            }""",
            name,
        )
        assert outside == []


def test_page_can_be_read_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("document.querySelector('.failure').append(' /scratch/' + 'x'.repeat(300))")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].map((text) =>
            parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a)"""
    )
    assert min(heights) > 8.5  # pixels; on a desktop 13


def test_trial_is_lit_everywhere_at_once(page: Page) -> None:
    row = page.locator("#leaderboard tbody tr").nth(3)
    number = row.get_attribute("data-trial")
    row.hover()
    lit = page.locator(".lit")
    assert {element.get_attribute("data-trial") for element in lit.all()} == {number}
    assert lit.count() == 3  # its curve, its line, its row
    row.click()
    page.mouse.move(0, 0)
    assert lit.count() == 3
    row.click()
    page.mouse.move(0, 0)
    assert lit.count() == 0
    page.keyboard.press("Tab")  # on to the next row
    assert lit.count() == 3
    assert lit.first.get_attribute("data-trial") != number


def test_command_is_copied_or_at_least_selected(page: Page) -> None:
    button = page.locator("#copy")
    button.click()
    expect(button).not_to_have_text("Copy")
    if button.inner_text() == "Press Ctrl+C":
        assert page.evaluate("getSelection().toString()").startswith("python jobs/train.py flickr8k --data")


def test_page_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
