"""A training job of its own process, for the test that kills it."""

import json
import sys
from pathlib import Path

from caption_ray.config import Experiment
from caption_ray.logs import configure_logging
from caption_ray.train.trainer import TrainRequest, train

if __name__ == "__main__":
    configure_logging()
    settings = json.loads(Path(sys.argv[1]).read_text())
    experiment = Experiment.model_validate(settings["experiment"])
    outcome = train(
        TrainRequest(
            experiment=experiment,
            preset=experiment,
            data=settings["data"],
            features=settings["features"],
            storage=settings["storage"],
            name="job",
            num_workers=2,
            device="cpu",
        )
    )
    sys.stdout.write(json.dumps(outcome.metrics) + "\n")
