import shlex

import tyro
from trials import settings

from caption_ray.config import OptimizerConfig
from caption_ray.presets import flickr8k
from caption_ray.tune.command import train_command
from caption_ray.tune.space import with_settings
from jobs import tune
from jobs.train import command_line


def test_command_is_read_back_as_the_experiment_that_it_repeats() -> None:
    """Numbers, switches, pairs and what is absent: all as jobs/train.py takes them."""
    preset = flickr8k()
    experiment = with_settings(preset, settings(rate=0.00123, dropout=0.37)).model_copy(
        update={"optimizer": OptimizerConfig(learning_rate=0.00123, betas=(0.8, 0.99), weight_decay=0.01)}
    )
    model = experiment.model.model_copy(update={"deep_output": False, "feature_size": None, "feature_dropout": 0.0})
    experiment = experiment.model_copy(update={"model": model})
    line = train_command(
        "flickr8k", preset, experiment, data="/my data", features="/f", storage="runs", name="s-again", device="cpu"
    )
    assert line.startswith("python jobs/train.py flickr8k --data '/my data' --features /f --storage runs")
    assert "--model.no-deep-output" in line
    assert "--optimizer.betas 0.8 0.99" in line
    assert "--model.feature-size None" in line
    assert "--model.dropout 0.37" in line
    assert "hidden-size 256" in line
    assert "batch-size" not in line  # the preset's own
    arguments = tyro.cli(command_line(), args=shlex.split(line)[2:])
    assert arguments.experiment == experiment
    assert (arguments.preset, arguments.data, arguments.features) == ("flickr8k", "/my data", "/f")
    assert (arguments.name, arguments.num_workers, arguments.device) == ("s-again", 1, "cpu")


def test_swept_setting_given_as_a_flag_is_what_the_space_is_around() -> None:
    line = "flickr8k --data d --features f --storage s --name n --model.hidden-size 300 --space.dropout 0.1 0.2"
    request = tune.to_request(tyro.cli(tune.command_line(), args=shlex.split(line)))
    assert (request.space.hidden_size, request.space.dropout) == ((150, 300, 600), (0.1, 0.2))
    assert request.experiment.model.hidden_size == 300
    assert request.preset == flickr8k()
