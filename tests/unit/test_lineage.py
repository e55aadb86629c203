import math
import re
from pathlib import Path

import pytest
from sweep_lineage import LINEAGE

import caption_ray
from caption_ray.bundle import load_bundle, save_bundle
from caption_ray.errors import BundleError
from caption_ray.lineage import Lineage, code_commit


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
