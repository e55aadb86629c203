"""Steps that are laid out for a graph: the same loss and gradients; on a GPU also the graph itself."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from caption_ray.config import EncoderConfig, Experiment, ModelConfig, TrainingConfig
from caption_ray.data.batches import CaptionBatch, PictureGroup, by_longest_caption, collate
from caption_ray.model.caption_layout import CaptionLayout
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder, pack_steps
from caption_ray.model.encoder import build_encoder
from caption_ray.model.loss import attention_penalty, caption_loss
from caption_ray.presets import flickr8k, palmetto, quickstart
from caption_ray.train.averaging import average_weights
from caption_ray.train.gradients import GradientWatch, NonFiniteLossError
from caption_ray.train.graphed import GraphedLoss, Weighting, fill_up, may_record, objective
from caption_ray.train.optimizer import build_optimizer
from caption_ray.train.steps import StepCounts, Stepper, idle_batch, make_scaler

R, F, V = 4, 6, 12
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_batch(seed: int = 0, captions: Sequence[int] = (2, 3, 1), longest: int = 6, features: int = F) -> CaptionBatch:
    """Return a batch of pictures with so many captions each, of random lengths."""
    generator = np.random.default_rng(seed)
    groups = [
        PictureGroup(
            picture=generator.standard_normal((R, features)).astype(np.float32),
            captions=tuple(
                tuple(generator.integers(4, V, size=generator.integers(1, longest + 1)).tolist()) for _ in range(count)
            ),
        )
        for count in captions
    ]
    return collate(by_longest_caption(groups))


def test_filled_up_by_hand() -> None:
    """Two pictures of [5 6] and of [7], [8 9 4 5]; room for three of two captions each, and steps in pairs."""
    first = PictureGroup(picture=np.zeros((R, F), np.float32), captions=((5, 6),))
    second = PictureGroup(picture=np.zeros((R, F), np.float32), captions=((7,), (8, 9, 4, 5)))
    filled = fill_up(collate([first, second]), 3, 2)
    assert filled.tolist() == [
        [1, 5, 6, 2, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 8, 9, 4, 5, 2, 0],  # longest first, as the batch has them; five predictions, hence six steps
        [1, 7, 2, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(("num_words", "num_steps"), [(1, 2), (2, 4), (31, 32), (32, 40), (40, 48)])
def test_few_lengths_are_told_apart(num_words: int, num_steps: int) -> None:
    """A caption has a prediction more than words, the end."""
    group = PictureGroup(picture=np.zeros((R, F), np.float32), captions=((5,) * num_words,))
    assert fill_up(collate([group]), 1, 1).shape == (1, num_steps + 1)


@pytest.mark.parametrize(("num_pictures", "per_picture"), [(2, 3), (3, 2)])
def test_what_has_no_room_is_an_error(num_pictures: int, per_picture: int) -> None:
    with pytest.raises(ValueError, match=f"more than {num_pictures} pictures with {per_picture} captions"):
        fill_up(make_batch(), num_pictures, per_picture)


def gradients_of(minimised: Tensor, model: CaptionModel) -> list[Tensor]:
    return list(torch.autograd.grad(minimised, list(model.parameters())))


def as_it_is(model: CaptionModel, training: TrainingConfig, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
    """Return what is minimised and the loss sum, of the batch as training on a CPU has it."""
    result = model(batch.pictures.double(), batch.ids, batch.lengths, batch.picture_index)
    targets = pack_steps(batch.ids[:, 1:], batch.lengths)
    loss_sum, _ = caption_loss(result.logits, targets, training.label_smoothing)
    penalty = training.attention_penalty * attention_penalty(result.attention_sums) / len(batch.lengths)
    return loss_sum / batch.num_words + penalty, loss_sum


@pytest.mark.parametrize("captions", [(2, 3, 1), (1, 1), (3, 3, 3, 3)])
@pytest.mark.parametrize("config", [quickstart().model, flickr8k().model, palmetto().model], ids=lambda c: str(c)[:20])
def test_same_loss_and_gradients_as_of_the_batch_as_it_is(config: ModelConfig, captions: tuple[int, ...]) -> None:
    still = dict.fromkeys(("dropout", "embedding_dropout", "feature_dropout", "word_dropout"), 0.0)
    sizes = {"embedding_size": 8, "hidden_size": 10, "attention_size": 6} | (
        {"feature_size": 8} if config.feature_size else {}
    )
    config = ModelConfig.model_validate(config.model_dump() | still | sizes)
    training = TrainingConfig(label_smoothing=0.1, attention_penalty=0.7, captions_per_picture=3, batch_size=15)
    torch.manual_seed(0)
    model = CaptionModel(None, Decoder(config, F, V)).double().train()
    batch = make_batch(captions=captions)
    expected, expected_sum = as_it_is(model, training, batch)

    ids = fill_up(batch, 5, 3)
    layout = CaptionLayout.of_equals(5, 3, ids.shape[1] - 1, CPU)
    features = torch.randn(5, R, F, dtype=torch.float64)  # what fills up may be anything
    features[: len(batch.pictures)] = batch.pictures
    weighting = Weighting(
        torch.tensor(1 / batch.num_words), torch.tensor(training.attention_penalty / len(batch.lengths))
    )
    minimised, loss_sum = objective(model, training, features, ids, layout, weighting)

    # The loss itself is taken in single precision, on either way.
    torch.testing.assert_close(minimised, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss_sum, expected_sum, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(gradients_of(minimised, model), gradients_of(expected, model), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_graphs_are_for_decoders_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    model = CaptionModel(None, Decoder(ModelConfig(), F, V))
    assert may_record(model, gpu)
    assert not may_record(model, CPU)
    with_encoder = CaptionModel(build_encoder(EncoderConfig(backbone="resnet18", weights="none")), model.decoder)
    assert not may_record(with_encoder, gpu)
    monkeypatch.setenv("CAPTION_RAY_GRAPHS", "off")
    assert not may_record(model, gpu)


def stepper(experiment: Experiment, graphs: bool, dropout: bool = False, device: str = "cuda") -> Stepper:
    """Return a stepper."""
    gpu = torch.device(device)
    still = {} if dropout else dict.fromkeys(("dropout", "embedding_dropout", "feature_dropout", "word_dropout"), 0.0)
    experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update=still)})
    torch.manual_seed(0)
    model = CaptionModel(None, Decoder(experiment.model, F, V)).to(gpu).train()
    precision = experiment.training.precision
    assert precision != "auto"
    scaler = make_scaler(precision, gpu)
    return Stepper(
        model=model,
        wrapped=model,
        graphed=GraphedLoss(model, experiment.training, precision, gpu, 4, scaler.scale) if graphs else None,
        optimizer=build_optimizer(model, experiment.optimizer),
        scaler=scaler,
        average=average_weights(model, experiment.training.average_decay),
        settings=experiment,
        precision=precision,
        device=gpu,
        idle=idle_batch((R, F), torch.float32),
    )


def steps_of(made: Stepper, batches: Sequence[CaptionBatch | None]) -> list[list[float]]:
    totals = [made.step(batch, StepCounts(20, 5)) for batch in batches]
    made.watch.settle()
    return [part.tolist() for part in totals]


BATCHES = [make_batch(0), make_batch(1, longest=11), None, make_batch(2, (3, 3, 3, 3)), make_batch(3, (1,))]


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), *(pytest.param("cuda", precision, marks=needs_gpu) for precision in ("fp32", "bf16", "fp16"))],
)
@pytest.mark.parametrize("preset", [flickr8k, palmetto, quickstart])
def test_graphs_do_the_same_steps(preset: object, device: str, precision: str) -> None:
    """On a CPU the same operations without a graph."""
    experiment = preset()  # type: ignore[operator]
    changed = {"precision": precision, "attention_penalty": 0.5, "captions_per_picture": 3}
    training = experiment.training.model_copy(update=changed)
    experiment = experiment.model_copy(update={"training": training})
    plain, graphed = (stepper(experiment, graphs, device=device) for graphs in (False, True))
    for made in (plain, graphed):  # AdamW makes much of gradients that are next to nothing
        made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    expected, found = (steps_of(made, BATCHES * 2) for made in (plain, graphed))
    near = 1e-4 if precision == "fp32" else 0.05
    assert np.allclose(found, expected, rtol=near, atol=near)
    for one, other in zip(plain.model.parameters(), graphed.model.parameters(), strict=True):
        one, other = one.detach(), other.detach()
        assert float((one - other).norm() / one.norm().clamp_min(1e-3)) < (1e-3 if precision == "fp32" else 0.05)


@needs_gpu
def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    """Whether a graph had to be recorded first makes no difference."""
    training = flickr8k().training.model_copy(update={"precision": "fp32"})
    experiment = flickr8k().model_copy(update={"training": training})
    made = stepper(experiment, graphs=True, dropout=True)
    weights = [weight.detach().clone() for weight in made.model.parameters()]

    def losses() -> list[list[float]]:
        with torch.no_grad():
            for weight, first in zip(made.model.parameters(), weights, strict=True):
                weight.copy_(first)
        made.optimizer.state.clear()
        torch.manual_seed(5)
        return steps_of(made, [BATCHES[0], BATCHES[0], BATCHES[1]])

    recorded, again = losses(), losses()
    assert np.allclose(recorded, again, rtol=1e-5)
    assert recorded[0] != recorded[1]


@needs_gpu
def test_a_gradient_that_is_not_finite_is_found_a_step_later() -> None:
    watch = GradientWatch()
    watch.add(torch.tensor(float("nan"), device="cuda"), 0)
    with pytest.raises(NonFiniteLossError, match="not finite"):
        watch.add(torch.tensor(1.0, device="cuda"), 0)
    watch.add(torch.tensor(1.0, device="cuda"), 1)
    watch.add(torch.tensor(float("inf"), device="cuda"), 1)
    watch.settle()
    with pytest.raises(NonFiniteLossError, match="not finite"):
        [watch.add(torch.tensor(float("inf"), device="cuda"), 1), watch.settle()]


def test_weights_of_a_batch_that_never_came_have_no_gradient() -> None:
    made = stepper(quickstart(), graphs=True, device="cpu")
    steps_of(made, [BATCHES[0]])
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in made.model.parameters())
    steps_of(made, [None])
    assert all(weight.grad is not None and float(weight.grad.abs().max()) == 0 for weight in made.model.parameters())


def test_gradients_that_were_taken_away_come_back() -> None:
    made = stepper(quickstart(), graphs=True, device="cpu")
    made.optimizer.zero_grad(set_to_none=True)
    before = [weight.detach().clone() for weight in made.model.parameters()]
    steps_of(made, [BATCHES[0]])
    assert all(not torch.equal(old, new) for old, new in zip(before, made.model.parameters(), strict=True))
