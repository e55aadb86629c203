"""Where a model of a sweep says that it comes from."""

from caption_ray.lineage import Lineage
from caption_ray.presets import quickstart

LINEAGE = Lineage(
    sweep="/runs/s",
    trial=7,
    num_trials=12,
    preset="quickstart",
    experiment=quickstart(),
    command="python jobs/train.py quickstart",
    data_digest="ab" * 32,
    features_key="cd" * 32,
    metrics={"cider": 0.5},
    commit="ef" * 20,
)
