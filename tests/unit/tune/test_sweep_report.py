import re
from html.parser import HTMLParser

from trials import SPACE, TRIALS, settings

from caption_ray.tune.report import SweepView, render_sweep
from caption_ray.tune.search import Importance
from caption_ray.tune.table import rank


def view(**changes: object) -> SweepView:
    fields = {
        "name": "<b>sweep</b>",
        "summary": "2 finished",
        "metric": "cider",
        "space": SPACE,
        "standings": rank(TRIALS, "cider", settings()),
        "importances": [Importance(path="optimizer.learning_rate", share=0.75, chance=0.4)],
        "command": "python jobs/train.py flickr8k --data 'a & b'",
        "facts": {"Seed": "0"},
    }
    return SweepView(**{**fields, **changes})  # type: ignore[arg-type]


def test_page_has_all_parts_and_asks_for_nothing() -> None:
    page = render_sweep(view())
    HTMLParser().feed(page)
    assert "Trial 2 is best: CIDEr 0.400 on dev after epoch 4" in page
    assert "best of the trials that are over" in page  # trial 3 runs
    assert "python jobs/train.py flickr8k --data &#39;a &amp; b&#39;" in page
    assert "<b>sweep</b>" not in page
    assert [len(re.findall(f'class="end {status}"', page)) for status in ("finished", "stopped", "running")] == [
        2,
        2,
        1,
    ]
    assert len(re.findall(r"<tr tabindex", page)) == 6
    assert "Trial 4 failed: the gradient is not finite" in page
    assert "75 %" in page
    assert "default-src 'none'" in page
    assert re.findall(r"(?:src|href)=|url\(|@import", page) == []
    assert len(page) < 40_000


def test_page_of_a_sweep_that_is_over_says_nothing_of_trials_that_run() -> None:
    over = [trial for trial in TRIALS if trial.status != "running"]
    assert "that are over" not in render_sweep(view(standings=rank(over, "cider", settings())))


def test_page_of_a_sweep_that_has_just_begun() -> None:
    page = render_sweep(view(standings=[], importances=[], command=None))
    assert "No trial is over yet that has a score." in page
    assert "Too few trials" in page
