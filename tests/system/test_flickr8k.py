"""The recipe on the real Flickr8k. Takes hours on two cores: `pytest -m slow`, with two variables set.

CAPTION_RAY_FLICKR8K names the folder (Kaggle layout, with the train and dev lists), CAPTION_RAY_WEIGHTS a MobileNetV2
state dict trained on ImageNet.
"""

import os
from pathlib import Path

import pytest
from commands import result_of, run

NEEDED = ("CAPTION_RAY_FLICKR8K", "CAPTION_RAY_WEIGHTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(any(name not in os.environ for name in NEEDED), reason=f"{' and '.join(NEEDED)} not set"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("flickr8k") / "data")
    result = result_of(
        run("prepare_data.py", "--source", os.environ["CAPTION_RAY_FLICKR8K"], "--output", output, "--skip-bad")
    )
    pictures = result["pictures"]
    assert isinstance(pictures, dict)
    assert (pictures["train"], pictures["dev"]) == (6000, 1000)
    return output


def test_the_recipe_reaches_its_marks(data: str, tmp_path: Path) -> None:
    features, runs = str(tmp_path / "features"), str(tmp_path / "runs")
    encoder = ("--encoder.backbone", "mobilenet_v2", "--encoder.weights", os.environ["CAPTION_RAY_WEIGHTS"])
    result_of(run("cache_features.py", "--data", data, "--output", features, *encoder, "--num-views", "3"))
    common = ("--data", data, "--features", features, "--storage", runs, "--name", "flickr8k")
    trained = result_of(run("train.py", "flickr8k", *common))
    bundle = str(trained["bundle"])
    output = ("--output", str(tmp_path / "dev"))
    scores = result_of(run("evaluate.py", "--bundle", bundle, "--data", data, "--split", "dev", *output))
    assert scores["num_pictures"] == 1000
    assert float(str(scores["bleu_4"])) >= 0.20
    assert float(str(scores["cider"])) >= 0.47
