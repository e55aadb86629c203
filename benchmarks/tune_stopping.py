"""Early stopping against running every trial to its end: `python benchmarks/tune_stopping.py --data D --features F`.

A sweep of small models with ASHA, then the very same trials (random search, same seed) each to its last epoch. Prints
both winners' dev scores and the epochs that each sweep took, and ends with 1 where a goal is missed: the same score
within 2 %, in at most half the epochs. --epochs and --trials make it shorter than the 8 trials of 9 epochs that it
takes by default.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace

from compare import report

from caption_ray.config import Experiment
from caption_ray.logs import configure_logging
from caption_ray.presets import flickr8k
from caption_ray.tune.records import StoppingConfig
from caption_ray.tune.request import SweepRequest
from caption_ray.tune.space import SearchSpace, with_settings
from caption_ray.tune.sweep import sweep

SMALL = {"model.embedding_size": 100, "model.hidden_size": 128, "model.attention_size": 64}
MIN_SCORE_RATIO, MAX_EPOCHS_RATIO = 0.98, 0.5
SPACE = SearchSpace(
    embedding_size=(50, 100, 200),
    hidden_size=(64, 128, 256),
    attention_size=(32, 64, 128),
    learning_rate=(3e-4, 1e-2),
    dropout=(0.2, 0.7),
    batch_size=(80, 160),
    label_smoothing=(0.0, 0.15),
)


def small_experiment(epochs: int) -> Experiment:
    """Return the `flickr8k` preset with a small decoder, the pictures themselves alone, and that many epochs."""
    preset = with_settings(flickr8k(), SMALL)
    model = preset.model.model_copy(update={"feature_size": 128})
    training = preset.training.model_copy(update={"epochs": epochs, "augment": False, "patience": 0})
    return preset.model_copy(update={"model": model, "training": training})


def small_sweep(data: str, features: str, storage: str, name: str, num_trials: int, epochs: int) -> SweepRequest:
    """Return a sweep of small models, at random."""
    experiment = small_experiment(epochs)
    return SweepRequest(
        preset_name="flickr8k",
        preset=experiment,
        experiment=experiment,
        space=SPACE,
        data=data,
        features=features,
        storage=storage,
        name=name,
        num_trials=num_trials,
        search="random",
        stopping=StoppingConfig(early=False),
        device="cpu",
    )


def run(arguments: argparse.Namespace, storage: str, *, early: bool) -> dict[str, float]:
    """Sweep, and return the winner's score, the epochs of all trials together and the seconds."""
    name = "early" if early else "whole"
    request = small_sweep(arguments.data, arguments.features, storage, name, arguments.trials, arguments.epochs)
    stopping = StoppingConfig(early=early, grace_epochs=arguments.grace, reduction=3)
    started = time.perf_counter()
    outcome = sweep(replace(request, stopping=stopping, seed=arguments.seed))
    return {
        "score": float(outcome.best.score or 0.0),
        "trial": outcome.best.record.number,
        "epochs": sum(len(one.record.epochs) for one in outcome.standings),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Measure both and print what stopping costs and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--grace", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="keep both sweeps there, and go on with them; by default they are discarded")
    arguments = parser.parse_args()
    configure_logging()
    with tempfile.TemporaryDirectory() as scratch:
        storage = arguments.storage or scratch
        early, whole = run(arguments, storage, early=True), run(arguments, storage, early=False)
    score_ratio, epochs_ratio = early["score"] / whole["score"], early["epochs"] / whole["epochs"]
    met = score_ratio >= MIN_SCORE_RATIO and epochs_ratio <= MAX_EPOCHS_RATIO
    report({"early": early, "whole": whole, "score_ratio": score_ratio, "epochs_ratio": epochs_ratio, "met": met})
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
