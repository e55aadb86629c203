"""The recipe on the real Flickr8k. Takes hours on two cores: `pytest -m slow`, with two variables set.

CAPTION_RAY_FLICKR8K names the folder (Kaggle layout, with the train and dev lists), CAPTION_RAY_WEIGHTS a MobileNetV2
state dict trained on ImageNet.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("CAPTION_RAY_FLICKR8K", "CAPTION_RAY_WEIGHTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(any(name not in os.environ for name in NEEDED), reason=f"{' and '.join(NEEDED)} not set"),
]


def run(job: str, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("flickr8k") / "data")
    result = run("prepare_data.py", "--source", os.environ["CAPTION_RAY_FLICKR8K"], "--output", output, "--skip-bad")
    pictures = result["pictures"]
    assert isinstance(pictures, dict)
    assert (pictures["train"], pictures["dev"]) == (6000, 1000)
    return output


def test_the_recipe_reaches_its_marks(data: str, tmp_path: Path) -> None:
    features, runs = str(tmp_path / "features"), str(tmp_path / "runs")
    encoder = ("--encoder.backbone", "mobilenet_v2", "--encoder.weights", os.environ["CAPTION_RAY_WEIGHTS"])
    run("cache_features.py", "--data", data, "--output", features, *encoder, "--num-views", "3")
    common = ("--data", data, "--features", features, "--storage", runs, "--name", "flickr8k")
    trained = run("train.py", "flickr8k", *common, "--num-workers", "2")
    bundle = str(trained["bundle"])
    scores = run("evaluate.py", "--bundle", bundle, "--data", data, "--split", "dev", "--output", str(tmp_path / "e"))
    assert scores["num_pictures"] == 1000
    assert float(str(scores["bleu_4"])) >= 0.20
    assert float(str(scores["cider"])) >= 0.47
