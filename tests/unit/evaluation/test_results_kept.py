import json
from pathlib import Path

import pytest

from caption_ray.errors import UsageError
from caption_ray.evaluation.evaluate import _check_is_no_bundle, _check_results

DEV = {"bundle": "first (1a2b)", "split": "dev", "beam_width": "5"}


def write(folder: Path, content: object) -> str:
    (folder / "metrics.json").write_text(json.dumps(content))
    return str(folder)


def test_first_and_repeated_evaluations_are_welcome(tmp_path: Path) -> None:
    _check_results(str(tmp_path / "absent"), DEV)
    _check_results(str(tmp_path), DEV)
    _check_results(write(tmp_path, {**DEV, "bleu_4": 0.2}), DEV)


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({**DEV, "split": "test"}, "split test"),
        ({**DEV, "bundle": "second (3c4d)", "beam_width": "1"}, r"bundle second \(3c4d\), beam_width 1"),
        ({"epoch": 3}, "a metrics.json of something else"),  # a bundle's, say
        ([], "a metrics.json of something else"),
    ],
)
def test_other_results_are_not_lost(there: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"holds other results \\({told}\\); name another --output, or .* --overwrite"):
        _check_results(write(tmp_path, there), DEV)


def test_what_was_scored_meanwhile_is_told(tmp_path: Path) -> None:
    """Another evaluation may have ended since this one began."""
    with pytest.raises(UsageError) as caught:
        _check_results(write(tmp_path, {**DEV, "split": "test"}), DEV, {"bleu_4": 0.3})
    assert caught.value.result == {"bleu_4": 0.3}


@pytest.mark.parametrize("name", ["report.html", "predictions_dev.json"])
def test_a_sweeps_page_is_not_lost_either(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("of a sweep")
    with pytest.raises(UsageError, match=f"a {name} of something else"):
        _check_results(str(tmp_path), DEV)


def test_a_bundle_is_never_written_into(tiny_bundle: Path, tmp_path: Path) -> None:
    _check_is_no_bundle(str(tmp_path))
    with pytest.raises(UsageError, match=r"holds a bundle, .*; name another --output$"):
        _check_is_no_bundle(str(tiny_bundle))
