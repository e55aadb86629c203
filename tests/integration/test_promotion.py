"""The road from a trained bundle to the Serve config, on drawn pictures."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sweep_lineage import LINEAGE

from caption_ray import storage
from caption_ray.bundle import build_model, load_bundle, read_manifest, save_bundle
from caption_ray.errors import BundleError, QualityError, RunError, UsageError
from caption_ray.promotion import PromoteRequest, promote
from caption_ray.serve.config_file import bundle_in, with_bundle
from caption_ray.serve.rollout import NotToldError
from caption_ray.train.trainer import TrainRequest

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def trained(request_two: TrainRequest, undisturbed: dict[str, object]) -> str:
    return f"{request_two.run_folder}/bundle"


@pytest.fixture(scope="module")
def untrained(trained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model with random weights."""
    bundle = load_bundle(trained)
    torch.manual_seed(5)
    folder = str(tmp_path_factory.mktemp("untrained") / "bundle")
    save_bundle(
        folder,
        name="untrained",
        data_digest=bundle.manifest.data_digest,
        config=bundle.config,
        vocabulary=bundle.vocabulary,
        model=build_model(bundle.config),
        metrics={},
    )
    return folder


@pytest.fixture
def request_for(data: str, tmp_path: Path) -> PromoteRequest:
    shutil.copy(CONFIG, tmp_path / "serve.yaml")
    return PromoteRequest(
        candidate="",
        data=data,
        serve_config=str(tmp_path / "serve.yaml"),
        models=str(tmp_path / "models"),
        num_draws=200,
    )


def test_worse_bundle_is_refused(request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path) -> None:
    request = replace(request_for, candidate=untrained, serving=trained)
    with pytest.raises(QualityError, match=r"95 % interval \[-.*over 41 pictures: worse; --force promotes") as caught:
        promote(request)
    result = caught.value.result
    assert result is not None
    assert (result["promoted"], result["num_pictures"]) == (False, 41)
    assert float(str(result["high"])) < 0
    assert Path(request.serve_config).read_text() == CONFIG.read_text()
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_worse_bundle_is_promoted_by_force_and_says_so(
    request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path
) -> None:
    promoted = promote(replace(request_for, candidate=untrained, serving=trained, force=True))
    digest = read_manifest(untrained).digest
    assert promoted.bundle == str(tmp_path / "models" / f"untrained-{digest[:12]}")
    assert bundle_in(request_for.serve_config) == promoted.bundle
    note = json.loads(Path(promoted.bundle, "promotion.json").read_text())
    assert (note["forced"], note["replaced"], note["from"]) == (True, trained, untrained)
    assert note["comparison"]["difference"] < 0


def test_better_bundle_is_kept_and_named(request_for: PromoteRequest, trained: str, untrained: str) -> None:
    config = Path(request_for.serve_config)
    config.write_text(with_bundle(str(config), untrained))
    request = replace(request_for, candidate=trained, metric="bleu_4")
    promoted = promote(request)
    assert promoted.comparison is not None
    assert promoted.comparison.low > 0
    assert promoted.replaced == untrained
    assert bundle_in(str(config)) == promoted.bundle != trained
    assert load_bundle(promoted.bundle).manifest.digest == read_manifest(trained).digest
    again = promote(request)
    assert (again.was_serving, again.bundle) == (True, promoted.bundle)


def test_first_bundle_has_nothing_to_be_compared_with_and_a_copy_that_was_cut_off_is_made_again(
    request_for: PromoteRequest, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    cut_off = tmp_path / "models" / f"undisturbed-{read_manifest(trained).digest[:12]}"
    cut_off.mkdir(parents=True)
    (cut_off / "model.safetensors").write_bytes(b"nothing")
    promoted = promote(replace(request_for, candidate=trained))
    assert (promoted.comparison, promoted.replaced) == (None, None)
    assert bundle_in(request_for.serve_config) == promoted.bundle == str(cut_off)
    load_bundle(promoted.bundle)


@pytest.mark.parametrize(
    ("error", "told_again"),
    [(KeyboardInterrupt(), [None]), (RunError("refused"), [None]), (NotToldError("no key"), [])],
)
def test_roll_out_that_fails_leaves_the_config_as_it_was(
    request_for: PromoteRequest,
    trained: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    told_again: list[None],
) -> None:
    """Ctrl-C while the service loads the bundle: the service is told of the old config again, if it knows a new one."""
    told = []

    def interrupted(config: str, *_: object) -> None:
        assert bundle_in(config) is not None
        raise error

    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    monkeypatch.setattr("caption_ray.promotion.roll_out", interrupted)
    monkeypatch.setattr("caption_ray.promotion.deploy", lambda config, _: told.append(bundle_in(config)))
    with pytest.raises(type(error)):
        promote(replace(request_for, candidate=trained, dashboard="http://127.0.0.1:1"))
    assert told == told_again
    assert Path(request_for.serve_config).read_text() == CONFIG.read_text()


@pytest.mark.parametrize("how", ["environment", "serving"])
def test_bundle_that_serves_by_another_name_is_kept_and_named(
    request_for: PromoteRequest, trained: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The clone's own config names none; that the service finds the very bundle is no reason to leave it at that."""
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", trained)
    promoted = promote(replace(request_for, candidate=trained, serving=trained if how == "serving" else None))
    assert (promoted.was_serving, promoted.comparison) == (False, None)
    assert bundle_in(request_for.serve_config) == promoted.bundle != trained
    assert json.loads(Path(promoted.bundle, "promotion.json").read_text())["replaced"] == trained
    assert promote(replace(request_for, candidate=trained)).was_serving


def test_bundle_without_a_clear_difference_is_promoted_with_all_that_speaks_against_it(
    request_for: PromoteRequest, trained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle(trained)
    for name, digest, said in (("old", "ab" * 32, None), ("new", bundle.manifest.data_digest, LINEAGE)):
        save_bundle(
            str(tmp_path / name),
            name=name,
            data_digest=digest,
            config=bundle.config,
            vocabulary=bundle.vocabulary,
            model=bundle.model,
            metrics={},
            lineage=said,
        )
    request = replace(request_for, candidate=str(tmp_path / "new"), serving=str(tmp_path / "old"))
    promoted = promote(request)
    assert promoted.comparison is not None
    assert (promoted.comparison.difference, promoted.comparison.verdict) == (0, "no clear difference")
    assert "no clear difference: the candidate is promoted since its score is not the lower one" in caplog.text
    assert "the best of 12 trials by this same split, which flatters it; --split test compares" in caplog.text
    assert re.findall(r"(\S+) was trained on another data set", caplog.text) == [str(tmp_path / "old")]
    note = json.loads(Path(promoted.bundle, "promotion.json").read_text())
    assert note["comparison"]["verdict"] == "no clear difference"
    assert note["compared_with"] == note["replaced"] == str(tmp_path / "old")


def test_damaged_bundle_that_the_service_would_find_is_not_absent(
    request_for: PromoteRequest, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "damaged"))
    with pytest.raises(BundleError, match=r"(?s)cannot be compared with: .*--force does without"):
        promote(replace(request_for, candidate=trained))
    assert promote(replace(request_for, candidate=trained, force=True)).comparison is None


def test_what_would_refuse_the_bundle_is_found_before_anything_is_captioned(
    request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_ray.promotion._compare", lambda *_: pytest.fail("captioned"))
    (tmp_path / "file").touch()
    request = replace(request_for, candidate=trained, serving=untrained)
    with pytest.raises(UsageError, match="file: cannot be written to"):
        promote(replace(request, models=str(tmp_path / "file")))
    assert not (tmp_path / "models").exists()


def test_candidate_that_is_replaced_meanwhile_is_not_promoted(
    request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep whose best it is may go on while both are captioned."""
    monkeypatch.setenv("CAPTION_RAY_BUNDLE", str(tmp_path / "absent"))
    best = Path(shutil.copytree(trained, tmp_path / "best"))
    copy = storage.copy_folder

    def replaced_first(source: str, target: str) -> None:
        shutil.rmtree(best)
        shutil.copytree(untrained, best)
        copy(source, target)

    monkeypatch.setattr("caption_ray.promotion.storage.copy_folder", replaced_first)
    with pytest.raises(BundleError, match="best: has been replaced while it was being promoted; promote again"):
        promote(replace(request_for, candidate=str(best)))
    assert not any((tmp_path / "models").iterdir())
    assert Path(request_for.serve_config).read_text() == CONFIG.read_text()


def test_what_the_config_named_is_what_was_replaced_whatever_it_was_compared_with(
    request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path
) -> None:
    config = Path(request_for.serve_config)
    config.write_text(with_bundle(str(config), str(tmp_path / "named")))
    promoted = promote(replace(request_for, candidate=trained, serving=untrained))
    note = json.loads(Path(promoted.bundle, "promotion.json").read_text())
    assert (note["replaced"], note["compared_with"]) == (str(tmp_path / "named"), untrained)


def test_damaged_serving_bundle_takes_force(
    request_for: PromoteRequest, trained: str, untrained: str, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(untrained, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes(b"nothing")
    request = replace(request_for, candidate=trained, serving=str(damaged))
    with pytest.raises(BundleError, match=r"cannot be compared with: .*SHA-256 differs.*--force does without"):
        promote(request)
    assert promote(replace(request, force=True)).comparison is None


def test_absent_candidate_or_config_is_wrong_use(request_for: PromoteRequest, trained: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle") as caught:
        promote(replace(request_for, candidate=str(tmp_path)))
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no such Serve config"):
        promote(replace(request_for, candidate=trained, serve_config=str(tmp_path / "absent.yaml")))


@pytest.mark.parametrize(("option", "setting"), [("--models", "models"), ("--serve-config", "serve_config")])
def test_job_that_would_promote_within_its_own_folder_is_refused(
    request_for: PromoteRequest, trained: str, monkeypatch: pytest.MonkeyPatch, option: str, setting: str
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match=f"{option} here: in a Ray job, name an absolute folder"):
        promote(replace(request_for, candidate=trained, **{setting: "here"}))
