import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_lineage import LINEAGE

import caption_ray
from caption_ray.bundle import load_bundle, save_bundle
from caption_ray.errors import BundleError
from caption_ray.lineage import COMMIT_VARIABLE, Lineage, code_commit


@pytest.fixture
def with_lineage(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle as a sweep's best."""
    loaded = load_bundle(str(tiny_bundle))
    save_bundle(
        str(tmp_path / "best"),
        name="s-0007",
        data_digest=loaded.manifest.data_digest,
        config=loaded.config,
        vocabulary=loaded.vocabulary,
        model=loaded.model,
        metrics=loaded.metrics,
        lineage=LINEAGE,
    )
    return tmp_path / "best"


def test_lineage_comes_back_with_the_bundle(with_lineage: Path, tiny_bundle: Path) -> None:
    bundle = load_bundle(str(with_lineage))
    assert bundle.lineage == LINEAGE
    assert bundle.manifest.files.keys() - load_bundle(str(tiny_bundle)).manifest.files.keys() == {"lineage.json"}
    assert load_bundle(str(tiny_bundle)).lineage is None


def test_lineage_keeps_numbers_that_json_does_not_have() -> None:
    lineage = LINEAGE.model_copy(update={"metrics": {"dev_loss": math.inf}})
    assert Lineage.model_validate_json(lineage.model_dump_json()) == lineage


def test_lineage_that_was_changed_is_found_out(with_lineage: Path) -> None:
    file = with_lineage / "lineage.json"
    file.write_text(file.read_text().replace('"trial": 7', '"trial": 8'))
    with pytest.raises(BundleError, match=r"lineage.json: not what manifest.json says"):
        load_bundle(str(with_lineage))


def test_code_is_known_by_its_commit() -> None:
    commit = code_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", commit)


def test_code_without_its_history_is_known_by_what_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_ray, "__file__", str(tmp_path / "__init__.py"))
    assert code_commit() is None
    monkeypatch.setenv("CAPTION_RAY_COMMIT", "abc+")
    assert code_commit() == "abc+"


def git_that_says(revision: str, changed: str) -> Callable[..., str]:
    """Return what stands for git in a checkout; without a revision it has no commit yet."""

    def git(_: Path, *arguments: str) -> str:
        if arguments == ("rev-parse", "HEAD") and not revision:
            raise subprocess.CalledProcessError(128, "git")
        return {"ls-files": "__init__.py", "rev-parse": revision, "status": changed}[arguments[0]]

    return git


def test_code_that_was_changed_since_its_commit_has_a_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    for changed, plus in (("", ""), (" M caption_ray/config.py", "+")):
        monkeypatch.setattr("caption_ray.lineage._git", git_that_says("ab" * 20, changed))
        assert code_commit() == "ab" * 20 + plus


def test_code_of_a_checkout_before_its_first_commit_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr("caption_ray.lineage._git", git_that_says("", ""))
    assert code_commit() is None
