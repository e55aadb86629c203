"""The jobs one after the other, as the README has them, on the quick start's own data."""

import json
from pathlib import Path

import pytest
from commands import QuickStart, result_of, run

SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "rouge_l")

pytestmark = pytest.mark.timeout(1800)  # the quick start's time counts too, where this comes first


def test_from_a_data_set_to_scores(quickstart: QuickStart, tmp_path: Path) -> None:
    """Small features and a single epoch, which is enough to see the way; the scores are nothing to be proud of."""
    data, features, runs = str(quickstart.folder / "data"), tmp_path / "features", tmp_path / "runs"

    encoder = ("--encoder.backbone", "resnet18", "--encoder.weights", "none", "--encoder.image-size", "64")
    cached = result_of(run("cache_features.py", "--data", data, "--output", str(features), *encoder))
    assert len(str(cached.pop("key"))) == 64
    assert cached == {
        "output": str(features),
        "shape": [4, 512],
        "num_views": 1,
        "pictures": {"train": 640, "dev": 80, "test": 80},
    }
    assert {path.name for path in features.iterdir()} == {
        *("train-00000.parquet", "dev-00000.parquet", "test-00000.parquet"),
        *("encoder.safetensors", "features.json"),
    }

    training = (
        "train.py", "quickstart", "--data", data, "--features", str(features), "--storage", str(runs),
        "--name", "small", "--num-workers", "2", "--training.epochs", "1",
    )  # fmt: skip
    trained = result_of(run(*training))
    bundle = runs / "small" / "bundle"
    assert (trained["bundle"], trained["was_finished"], trained["epoch"]) == (str(bundle), False, 1)
    assert_scores(trained)
    assert {path.name for path in bundle.iterdir()} == {
        *("model.safetensors", "config.json", "vocabulary.json", "metrics.json", "manifest.json", "README.md"),
    }
    assert json.loads((bundle / "config.json").read_text())["encoder"]["image_size"] == 64  # the features', not 224

    again = run(*training)
    assert result_of(again) == {**trained, "was_finished": True}
    assert "run small is finished" in again.stderr

    output = tmp_path / "evaluation"
    source = ("--source", str(quickstart.folder / "source"), "--split", "test")
    scores = result_of(run("evaluate.py", "--bundle", str(bundle), *source, "--output", str(output)))
    assert_scores(scores)
    assert (scores["num_pictures"], scores["output"]) == (80, str(output))
    assert {path.name for path in output.iterdir()} == {"metrics.json", "predictions_test.json", "report.html"}
    metrics = json.loads((output / "metrics.json").read_text())
    assert {name: metrics[name] for name in SCORES} == {name: scores[name] for name in SCORES}
    assert len(json.loads((output / "predictions_test.json").read_text())) == 80


def assert_scores(result: dict[str, object]) -> None:
    """Every score is there, in its range; captions have at least some word in common with their references."""
    scores = {name: float(str(result[name])) for name in SCORES}
    assert all(0 <= score <= (10 if name == "cider" else 1) for name, score in scores.items())
    assert min(scores["bleu_1"], scores["rouge_l"]) > 0
