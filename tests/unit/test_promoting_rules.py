"""What a promotion decides, asks for and tells, on numbers at hand: no model is trained, and nothing is captioned."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from another_driver import at_work
from sweep_lineage import LINEAGE

from caption_ray import promotion, storage
from caption_ray.bundle import Bundle, load_bundle
from caption_ray.errors import QualityError, RunError
from caption_ray.evaluation.comparison import Comparison
from caption_ray.promotion import PromoteRequest, promote
from caption_ray.serve.config_file import bundle_in, with_bundle

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


def compared(low: float, difference: float, high: float, num_pictures: int = 41) -> Comparison:
    return Comparison(
        metric="cider",
        candidate=0.5 + difference,
        serving=0.5,
        difference=difference,
        low=low,
        high=high,
        share_better=0.5,
        num_pictures=num_pictures,
        num_draws=7,
    )


@pytest.fixture
def request_for(tiny_bundle: Path, tmp_path: Path) -> PromoteRequest:
    (tmp_path / "config").mkdir()
    return PromoteRequest(
        candidate=str(tiny_bundle),
        data="/data",
        serve_config=shutil.copy(CONFIG, str(tmp_path / "config" / "serve.yaml")),
        models=str(tmp_path / "models"),
    )


@pytest.mark.parametrize(
    ("comparison", "refusal"),
    [
        (compared(-0.3, -0.1, 0.2), "scores lower, if by no more than chance could make, than"),
        (compared(-0.3, -0.2, -0.1), "is worse than"),
        (compared(-0.2, 0.1, 0.3), None),
        (compared(-0.2, 0.0, 0.3), None),
    ],
)
def test_lower_score_is_refused_however_small_the_difference(
    comparison: Comparison, refusal: str | None, request_for: PromoteRequest, tiny_bundle: Path
) -> None:
    bundle = load_bundle(str(tiny_bundle))
    promotion._judge(comparison, bundle, bundle, replace(request_for, force=True))
    with contextlib.nullcontext() if refusal is None else pytest.raises(QualityError, match=refusal):
        promotion._judge(comparison, bundle, bundle, request_for)


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("num_pictures", [29, 30])
def test_what_weakens_a_comparison_is_told(
    split: Literal["dev", "test"],
    num_pictures: int,
    request_for: PromoteRequest,
    tiny_bundle: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = replace(load_bundle(str(tiny_bundle)), lineage=LINEAGE)
    promotion._judge(compared(0.1, 0.2, 0.3, num_pictures), bundle, bundle, replace(request_for, split=split))
    assert ("best of 12 trials by this same split" in caplog.text) is (split == "dev")
    assert ("pictures are too few for the interval" in caplog.text) is (num_pictures == 29)


def test_comparison_is_the_one_that_was_asked_for(
    request_for: PromoteRequest, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def pictures(data: str, split: str) -> SimpleNamespace:
        asked.append((data, split))
        return SimpleNamespace(count=1)

    def predict(bundle: Bundle, _: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="a.jpg", caption=f"{bundle.location} runs", references=["A dog runs ."])]

    def compare(*given: object, **how: int) -> Comparison:
        asked.append((*given, how))
        return compared(-1, -0.5, 0)

    monkeypatch.setattr(promotion, "connect", contextlib.nullcontext)
    monkeypatch.setattr(promotion, "load_manifest", lambda _: SimpleNamespace(digest="ab" * 32))
    monkeypatch.setattr(promotion, "prepared_pictures", pictures)
    monkeypatch.setattr(promotion, "predict", predict)
    monkeypatch.setattr(promotion, "compare", compare)
    ours, theirs = (replace(load_bundle(str(tiny_bundle)), location=name) for name in ("new", "old"))
    promotion._compare(ours, theirs, replace(request_for, metric="bleu_4", split="test", num_draws=123, seed=5))
    captions = [{"a.jpg": [name, "runs"]} for name in ("new", "old")]
    how = {"num_draws": 123, "seed": 5}
    assert asked == [("/data", "test"), (*captions, {"a.jpg": [["a", "dog", "runs"]]}, "bleu_4", how)]


def test_forced_promotion_says_so_and_what_it_was_judged_on(
    request_for: PromoteRequest, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(str(tiny_bundle))
    serving = replace(bundle, manifest=bundle.manifest.model_copy(update={"name": "other"}))
    checked: list[str] = []
    monkeypatch.setattr(promotion, "_load_serving", lambda *_, **__: serving)
    monkeypatch.setattr(promotion, "_compare", lambda *_: compared(-0.3, -0.2, -0.1))
    monkeypatch.setattr(storage, "check_writable", checked.append)
    promoted = promote(replace(request_for, force=True, split="test"))
    note = json.loads(Path(promoted.bundle, "promotion.json").read_text())
    assert (note["forced"], note["split"], note["data"]) == (True, "test", "/data")
    assert checked == [str(tmp_path), str(tmp_path / "config")]  # where models are to be, and where the config is


def test_kept_copy_that_is_whole_is_rolled_out_and_one_that_is_damaged_is_made_again(
    request_for: PromoteRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Sequence[object]] = []
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    monkeypatch.setattr(promotion, "roll_out", lambda *asked: told.append(asked))
    promoted = promote(request_for)
    assert told == []
    assert promote(replace(request_for, dashboard="http://head:8265")).was_serving
    assert told == [(request_for.serve_config, "http://head:8265", promoted.model_id, None)]
    (Path(promoted.bundle) / "model.safetensors").write_bytes(b"cut off")
    assert not promote(replace(request_for, force=True)).was_serving
    assert load_bundle(promoted.bundle).manifest.digest == promoted.model_id


def test_service_that_cannot_be_told_of_the_old_config_again_is_spoken_of(
    request_for: PromoteRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_new(*_: object) -> None:
        raise RunError("out of memory")

    def refuse_old(*_: object) -> None:
        raise RunError("no such import")

    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    monkeypatch.setattr(promotion, "roll_out", refuse_new)
    monkeypatch.setattr(promotion, "deploy", refuse_old)
    told = "^out of memory\nNor could the service be told of the old config again: no such import$"
    with pytest.raises(RunError, match=told):
        promote(replace(request_for, dashboard="http://head:8265"))
    assert Path(request_for.serve_config).read_text() == CONFIG.read_text()


def test_what_others_changed_meanwhile_in_the_config_stays(
    request_for: PromoteRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(request_for.serve_config)

    def be_edited_and_refuse(*_: object) -> None:
        config.write_text(config.read_text().replace("max_batch_size: 16", "max_batch_size: 8"))
        raise RunError("out of memory")

    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    monkeypatch.setattr(promotion, "roll_out", be_edited_and_refuse)
    with pytest.raises(RunError, match=r"^out of memory\n.*serve\.yaml has been changed meanwhile, and is left so"):
        promote(replace(request_for, dashboard="http://head:8265"))
    assert "max_batch_size: 8" in config.read_text()


def test_promotion_waits_for_no_other_into_the_same_folder_and_touches_none_of_its_copies(
    request_for: PromoteRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    lock = tmp_path / "models" / "promotion.lock"
    told = "process 7 on elsewhere works on this folder of promoted bundles"
    with at_work(lock), pytest.raises(RunError, match=told):
        promote(request_for)
    assert [path.name for path in lock.parent.iterdir()] == [lock.name]
    assert Path(request_for.serve_config).read_text() == CONFIG.read_text()


def test_config_that_names_another_bundle_by_now_was_not_compared_with(
    request_for: PromoteRequest, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(request_for.serve_config)

    def be_overtaken(*_: object) -> Comparison:
        config.write_text(with_bundle(str(config), "/models/better", None))
        return compared(0.1, 0.2, 0.3)

    serving = load_bundle(str(tiny_bundle))
    other = replace(serving, manifest=serving.manifest.model_copy(update={"files": {"README.md": "0" * 64}}))
    monkeypatch.setattr(promotion, "_load_serving", lambda *_, **__: other)
    monkeypatch.setattr(promotion, "_compare", be_overtaken)
    with pytest.raises(RunError, match="names another bundle than the one compared with; promote again"):
        promote(request_for)
    assert bundle_in(str(config)) == "/models/better"
