import math

import pytest

from caption_ray.config import Experiment, TrainingConfig
from caption_ray.evaluation.metrics import score_captions
from caption_ray.train.dev import DevResult
from caption_ray.train.gradients import NonFiniteLossError
from caption_ray.train.meter import Meter, dev_values
from caption_ray.train.setup import FeedPlan, RunPlan
from caption_ray.train.state import Position
from caption_ray.train.steps import StepCounts

FEED = FeedPlan(shape=(2, 3), dtype="<f2")
PLAN = RunPlan(
    name="run",
    experiment=Experiment(training=TrainingConfig(epochs=4)),
    run_folder="/runs/run",
    data="/data",
    vocabulary="{}",
    cached=True,
    encoder_sha256="ab",
    num_features=3,
    train_feed=FEED,
    dev_feed=FEED,
    num_train_captions=200,
    num_dev_pictures=1,
    threads_per_worker=1,
    stop_files=(),
)


def test_an_epoch_that_was_cut_short_is_counted_on_but_its_speed_is_of_this_process_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = Position(num_steps=7, num_words=900, num_captions=140, num_workers=2)
    meter = Meter(1, PLAN, before)
    now = meter.started + 10
    monkeypatch.setattr("caption_ray.train.meter.time.monotonic", lambda: now)
    assert str(meter) == "epoch 2 of 4: 70%"  # nothing to foretell an end from yet
    meter.add(StepCounts(num_words=130, num_captions=20))
    after = Position(num_steps=8, num_words=1030, num_captions=160, num_workers=2, device="cuda")
    assert meter.position(2, "cuda") == after
    assert meter.share == 0.8
    assert 1.9 < meter.captions_per_s <= 2
    assert 12.9 < meter.words_per_s <= 13
    assert str(meter) == "epoch 2 of 4: 80%, 2 captions/s, 20 s left"


def test_first_line_is_due_ten_seconds_after_the_first_step_which_may_have_compiled_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter = Meter(0, PLAN, Position())
    now = meter.started + 15  # a rate of 1 caption/s would foretell three minutes
    monkeypatch.setattr("caption_ray.train.meter.time.monotonic", lambda: now)
    meter.add(StepCounts(num_words=130, num_captions=20))
    assert not meter.is_due()
    now += 10
    meter.add(StepCounts(num_words=130, num_captions=100))
    assert meter.is_due()
    assert str(meter) == "epoch 1 of 4: 60%, 5 captions/s, 17 s left"
    assert not meter.is_due()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_epoch_whose_dev_loss_is_no_number_fails(loss: float) -> None:
    scores = score_captions({"p": ["a", "dog"]}, {"p": [["a", "dog"]]}, {"a", "dog"})
    assert dev_values(DevResult(scores=scores, loss=2.5, shown={}))["loss/dev"] == 2.5
    with pytest.raises(NonFiniteLossError, match="the dev loss is not finite"):
        dev_values(DevResult(scores=scores, loss=loss, shown={}))
