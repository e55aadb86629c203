import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caption_ray.config import EncoderConfig, ModelConfig
from caption_ray.data.batches import CaptionBatch, PictureGroup, collate
from caption_ray.errors import RunError
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.model.encoder import build_encoder
from caption_ray.train.agreement import gathered
from caption_ray.train.state import (
    PROGRESS_NAME,
    CheckpointRecord,
    Position,
    Progress,
    WorkerState,
    evaluated_model,
    load_best_weights,
    load_state,
    load_weights,
    load_worker_state,
    save_state,
)
from caption_ray.train.steps import StepCounts, Stepper

MakeStepper = Callable[..., Stepper]
Weights = dict[str, torch.Tensor]


def batch(seed: int) -> CaptionBatch:
    grids = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed)).numpy()
    words = [((4, 5 + seed % 6), (6,)), ((7, 8, 9),)]
    return collate([PictureGroup(picture=grid, captions=ids) for grid, ids in zip(grids, words, strict=True)])


def run_epoch(stepper: Stepper, epoch: int) -> None:
    torch.manual_seed(epoch)  # dropout
    for step in range(3):
        own = batch(10 * epoch + step)
        stepper.step(own, StepCounts.of(own))


def weights(model: torch.nn.Module) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(mine: Weights, theirs: Weights) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_going_on_equals_never_stopping(make_stepper: MakeStepper, tmp_path: Path, average_decay: float) -> None:
    undisturbed = make_stepper(average_decay=average_decay)
    for epoch in (1, 2):
        run_epoch(undisturbed, epoch)

    before, after = (make_stepper(average_decay=average_decay) for _ in range(2))
    start = weights(before.model)
    run_epoch(before, 1)
    progress = Progress().after_epoch(0.25, 7.0)
    save_state(tmp_path, before, progress, {})
    run_epoch(after, 5)  # whatever it held is replaced
    assert load_state(tmp_path, after) == progress
    assert equal(weights(after.model), weights(before.model))
    run_epoch(after, 2)

    assert equal(weights(after.model), weights(undisturbed.model))
    assert equal(weights(evaluated_model(after)), weights(evaluated_model(undisturbed)))
    assert not equal(weights(after.model), weights(before.model))
    assert not equal(weights(before.model), start)


def test_average_begins_with_the_weights_of_a_checkpoint_without(make_stepper: MakeStepper, tmp_path: Path) -> None:
    before, after = make_stepper(), make_stepper(average_decay=0.9)
    run_epoch(before, 1)
    save_state(tmp_path, before, Progress(), {})
    load_state(tmp_path, after)
    assert after.average is not None
    assert equal(weights(after.average.module), weights(before.model))
    assert int(after.average.n_averaged) == 0


def test_scale_of_half_precisions_loss_comes_back(make_stepper: MakeStepper, tmp_path: Path) -> None:
    before, after = make_stepper(), make_stepper()
    for stepper, scale in ((before, 8.0), (after, 1024.0)):
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        stepper.scaler.scale(torch.ones(1))
    save_state(tmp_path, before, Progress(), {})
    load_state(tmp_path, after)
    assert after.scaler.get_scale() == 8.0


def test_averaged_weights_are_what_is_kept_as_best(make_stepper: MakeStepper, tmp_path: Path) -> None:
    stepper = make_stepper(average_decay=0.5)
    run_epoch(stepper, 1)
    save_state(tmp_path, stepper, Progress(), {})
    assert stepper.average is not None
    assert evaluated_model(stepper) is stepper.average.module
    fresh = make_stepper().model
    load_best_weights(tmp_path, fresh)
    assert equal(weights(fresh), weights(stepper.average.module))
    assert not equal(weights(fresh), weights(stepper.model))


def test_plain_weights_are_kept_as_best_without_an_average(make_stepper: MakeStepper, tmp_path: Path) -> None:
    stepper = make_stepper()
    run_epoch(stepper, 1)
    save_state(tmp_path, stepper, Progress(), {})
    assert evaluated_model(stepper) is stepper.model
    fresh = make_stepper().model
    load_best_weights(tmp_path, fresh)
    assert equal(weights(fresh), weights(stepper.model))


def test_numbers_that_json_does_not_have_do_not_spoil_a_checkpoint(make_stepper: MakeStepper, tmp_path: Path) -> None:
    stepper, progress = make_stepper(), Progress().after_epoch(math.inf, 1.0)
    save_state(tmp_path, stepper, progress, {"dev_loss": -math.inf})
    assert load_state(tmp_path, stepper) == progress
    record = CheckpointRecord.model_validate_json((tmp_path / PROGRESS_NAME).read_bytes())
    assert record.metrics == {"dev_loss": -math.inf}


def test_checkpoint_of_another_model_is_refused(make_stepper: MakeStepper, tmp_path: Path) -> None:
    save_state(tmp_path, make_stepper(hidden_size=8), Progress(), {})
    with pytest.raises(RunError, match=r"(?s)a checkpoint of another model: .*size mismatch.*; use another --name"):
        load_state(tmp_path, make_stepper())


def test_checkpoint_loads_without_pickle(make_stepper: MakeStepper, tmp_path: Path) -> None:
    save_state(tmp_path, make_stepper(average_decay=0.5), Progress(epochs_done=3), {"cider": 0.25})
    assert sorted(torch.load(tmp_path / "state.pt", weights_only=True)) == [
        "average",
        "model",
        "num_averaged",
        "optimizer",
        "scaler",
        "workers",
    ]
    record = CheckpointRecord.model_validate_json((tmp_path / "progress.json").read_bytes())
    assert record.progress.epochs_done == 3
    assert record.metrics == {"cider": 0.25}
    assert record.state_bytes == (tmp_path / "state.pt").stat().st_size


@pytest.mark.parametrize("finetune_stages", [0, 1])
def test_encoder_is_kept_only_where_it_trains(make_stepper: MakeStepper, tmp_path: Path, finetune_stages: int) -> None:
    config = EncoderConfig(backbone="mobilenet_v2", weights="none", finetune_stages=finetune_stages)
    decoder = Decoder(ModelConfig(embedding_size=3, hidden_size=5, attention_size=2), 1280, 11)
    stepper = make_stepper()
    stepper.model = CaptionModel(build_encoder(config), decoder)
    save_state(tmp_path, stepper, Progress(), {})
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert any(name.startswith("encoder.") for name in kept) is (finetune_stages > 0)
    fresh = CaptionModel(
        build_encoder(config),
        Decoder(ModelConfig(embedding_size=3, hidden_size=5, attention_size=2), 1280, 11),
    )
    load_weights(fresh, kept)
    assert equal(weights(fresh), weights(stepper.model))


def test_missing_decoder_weights_are_named(make_stepper: MakeStepper) -> None:
    model = make_stepper().model
    partial = weights(model)
    del partial["decoder.lstm.bias_ih"]
    with pytest.raises(RuntimeError, match=r"weights do not fit: decoder\.lstm\.bias_ih"):
        load_weights(model, partial)


def test_progress_by_hand() -> None:
    first = Progress().after_epoch(0.10, 5.0)
    second = first.after_epoch(0.30, 6.0)
    third = second.after_epoch(0.30, 4.0)  # as good is not better
    assert first == Progress(epochs_done=1, best_score=0.10, best_epoch=1, train_seconds=5.0)
    assert second == Progress(epochs_done=2, best_score=0.30, best_epoch=2, train_seconds=11.0)
    assert third == Progress(epochs_done=3, best_score=0.30, best_epoch=2, train_seconds=15.0)
    assert [progress.rank for progress in (first, second, third)] == [1, 2, 0]
    assert Progress().after_epoch(0.0, 1.0).best_epoch == 1


@pytest.mark.parametrize(
    ("done", "best", "epochs", "patience", "over"),
    [
        (0, 0, 5, 2, False),
        (4, 4, 5, 2, False),
        (5, 5, 5, 2, True),
        (6, 6, 5, 0, True),
        (3, 2, 5, 2, False),  # one epoch without a better score
        (4, 2, 5, 2, True),  # two
        (4, 2, 5, 0, False),  # patience 0 waits for ever
    ],
)
def test_a_run_is_over(done: int, best: int, epochs: int, patience: int, over: bool) -> None:
    assert Progress(epochs_done=done, best_epoch=best).is_over(epochs, patience) is over


def test_what_a_worker_alone_knows_comes_back_in_the_midst_of_an_epoch(
    make_stepper: MakeStepper, tmp_path: Path
) -> None:
    totals = torch.tensor([12.5, 7.0], dtype=torch.float64)
    torch.manual_seed(3)
    torch.rand(5)
    mine = WorkerState.take(totals)
    expected = torch.rand(4)
    assert gathered(mine) == [mine]
    other = WorkerState(totals=totals + 1, random=torch.zeros_like(mine.random))
    position = Position(num_steps=2, num_words=14, num_captions=4, num_workers=2)
    save_state(tmp_path, make_stepper(), Progress(epochs_done=1), {}, position, [other, mine])

    record = CheckpointRecord.model_validate_json((tmp_path / "progress.json").read_bytes())
    assert record.position == position
    found = torch.zeros(2, dtype=torch.float64)
    load_worker_state(tmp_path, 1).restore(found)
    assert found.tolist() == [12.5, 7.0]
    assert torch.equal(torch.rand(4), expected)
