import math
from collections.abc import Callable

import pytest
import torch

from caption_ray.config import EncoderConfig, ModelConfig, OptimizerConfig, TrainingConfig
from caption_ray.data.batches import CaptionBatch, PictureGroup, collate
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.model.encoder import build_encoder
from caption_ray.train.gradients import MAX_SKIPPED, NonFiniteLossError, clip_gradients
from caption_ray.train.optimizer import build_optimizer, set_learning_rate
from caption_ray.train.steps import (
    StepCounts,
    Stepper,
    dev_loss,
    groups_per_worker,
    make_scaler,
)

MakeStepper = Callable[..., Stepper]
CPU = torch.device("cpu")


def group(seed: int, *captions: tuple[int, ...]) -> PictureGroup:
    grid = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).numpy()
    return PictureGroup(picture=grid, captions=captions)


SHORT = group(1, (4, 5))  # 3 words, <end> included
LONG = group(2, (6, 7, 8, 9, 10), (4, 9))  # 6 + 3


def change(stepper: Stepper, batch: CaptionBatch | None, counts: StepCounts) -> torch.Tensor:
    """Return by how much a step changes the weights, all in one vector."""
    before = torch.nn.utils.parameters_to_vector(stepper.model.parameters()).detach()
    stepper.step(batch, counts)
    return torch.nn.utils.parameters_to_vector(stepper.model.parameters()).detach() - before


@pytest.mark.parametrize("attention_penalty", [0.0, 2.0])
def test_shares_of_3_and_9_words_add_up_to_the_pooled_gradient(
    make_stepper: MakeStepper, attention_penalty: float
) -> None:
    counts = StepCounts(num_words=12, num_captions=3)
    assert StepCounts.of(collate([SHORT, LONG])) == counts

    def gradient(*groups: PictureGroup) -> torch.Tensor:
        return change(make_stepper(plain_sgd=True, attention_penalty=attention_penalty), collate(groups), counts)

    pooled = gradient(SHORT, LONG)
    assert torch.allclose(gradient(SHORT) + gradient(LONG), pooled, atol=1e-6)
    assert float(pooled.abs().max()) > 0.01
    # What averaging the two workers' own means would give instead.
    means = [
        change(make_stepper(plain_sgd=True), collate([share]), StepCounts(words, captions))
        for share, words, captions in ((SHORT, 3, 1), (LONG, 9, 2))
    ]
    assert not torch.allclose(sum(means) / 2, pooled, atol=1e-3)


def test_step_returns_the_loss_summed_over_words(make_stepper: MakeStepper) -> None:
    stepper = make_stepper(plain_sgd=True)
    torch.nn.init.zeros_(stepper.model.decoder.output.weight)
    batch = collate([SHORT, LONG])
    loss_sum, num_words = stepper.step(batch, StepCounts.of(batch)).tolist()
    assert loss_sum == pytest.approx(12 * math.log(11), rel=1e-5)
    assert num_words == 12


def test_count_of_no_batch() -> None:
    assert StepCounts.of(None) == StepCounts(num_words=0, num_captions=0)


def test_idle_worker_changes_nothing_but_takes_part(make_stepper: MakeStepper) -> None:
    stepper = make_stepper(plain_sgd=True, attention_penalty=1.0)
    heard: set[str] = set()
    for name, weight in stepper.model.named_parameters():
        weight.register_hook(lambda gradient, name=name: heard.add(name))
    assert float(change(stepper, None, StepCounts(num_words=9, num_captions=2)).abs().max()) == 0.0
    assert heard == {name for name, _ in stepper.model.named_parameters()}
    assert stepper.step(None, StepCounts(num_words=9, num_captions=2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("max_norm", "clipped"), [(6.0, [3.0, 4.0]), (5.0, [3.0, 4.0]), (2.5, [1.5, 2.0])])
def test_a_gradient_of_norm_5_is_scaled_down_where_it_must(max_norm: float, clipped: list[float]) -> None:
    weights = [torch.zeros(1), torch.zeros(1), torch.zeros(1)]  # the last has no gradient
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip_gradients(weights, max_norm)) == 5.0
    assert [float(weight.grad) for weight in weights[:2]] == pytest.approx(clipped, rel=1e-5)


def test_gradients_are_clipped_to_the_norm(make_stepper: MakeStepper) -> None:
    batch = collate([SHORT, LONG])
    counts = StepCounts.of(batch)
    free = change(make_stepper(plain_sgd=True), batch, counts)
    clipped = change(make_stepper(plain_sgd=True, max_grad_norm=0.01), batch, counts)
    assert float(free.norm()) > 0.1
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-4)


def test_non_finite_gradients_stop_the_run_and_leave_the_weights(make_stepper: MakeStepper) -> None:
    stepper = make_stepper(plain_sgd=True)
    broken = collate([PictureGroup(picture=SHORT.picture * float("nan"), captions=SHORT.captions)])
    before = [weight.clone() for weight in stepper.model.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"lower optimizer\.learning_rate"):
        stepper.step(broken, StepCounts.of(broken))
    assert all(torch.equal(old, new) for old, new in zip(before, stepper.model.parameters(), strict=True))


def test_fp16_skips_steps_that_are_not_finite_but_not_for_ever(make_stepper: MakeStepper) -> None:
    stepper = make_stepper(plain_sgd=True)
    stepper.precision, stepper.scaler = "fp16", make_scaler("fp16", CPU)
    good = collate([SHORT])
    broken = collate([PictureGroup(picture=SHORT.picture * float("nan"), captions=SHORT.captions)])
    before = [weight.clone() for weight in stepper.model.parameters()]
    for _ in range(MAX_SKIPPED):
        assert stepper.step(broken, StepCounts.of(broken)).tolist() == [0.0, 0.0]
    assert all(torch.equal(old, new) for old, new in zip(before, stepper.model.parameters(), strict=True))
    loss_sum, num_words = stepper.step(good, StepCounts.of(good)).tolist()
    assert math.isfinite(loss_sum)
    assert num_words == good.num_words
    for _ in range(MAX_SKIPPED):
        stepper.step(broken, StepCounts.of(broken))
    with pytest.raises(NonFiniteLossError, match="fp32"):
        stepper.step(broken, StepCounts.of(broken))


def test_average_by_hand(make_stepper: MakeStepper) -> None:
    stepper = make_stepper(average_decay=0.75)
    batch = collate([SHORT])
    seen = []
    for _ in range(2):
        stepper.step(batch, StepCounts.of(batch))
        seen.append(stepper.model.decoder.output.weight.detach().clone())
    assert stepper.average is not None
    # The first step's weights start the average; the second step's decay is 2 / 11, still under 0.75.
    expected = (2 * seen[0] + 9 * seen[1]) / 11
    assert torch.allclose(stepper.average.module.decoder.output.weight, expected, atol=1e-7)


def test_weight_decay_is_for_matrices_only() -> None:
    encoder = build_encoder(EncoderConfig(backbone="mobilenet_v2", weights="none", finetune_stages=1))
    model = CaptionModel(encoder, Decoder(ModelConfig(feature_size=6), 1280, 11))
    config = OptimizerConfig(learning_rate=0.01, encoder_learning_rate=0.001, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    found = {
        id(weight): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            assert id(weight) not in found
        elif name.startswith("encoder."):
            assert found.pop(id(weight)) == (0.1, 0.001)
        else:
            bias_like = name.endswith(("bias", "bias_ih", "bias_hh")) or ".feature_projection.1." in name
            assert found.pop(id(weight)) == (0.0 if bias_like else 0.1, 0.01)
    assert found == {}


def test_optimizer_has_the_betas_that_are_asked_for(make_stepper: MakeStepper) -> None:
    optimizer = build_optimizer(make_stepper().model, OptimizerConfig(betas=(0.7, 0.8)))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.8)}


def test_learning_rate_scales_each_groups_peak() -> None:
    encoder = build_encoder(EncoderConfig(backbone="mobilenet_v2", weights="none", finetune_stages=1))
    model = CaptionModel(encoder, Decoder(ModelConfig(), 1280, 11))
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.01, encoder_learning_rate=0.001))
    for factor in (0.5, 0.1):
        set_learning_rate(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01 * factor] * 2 + [0.001 * factor])


def test_dev_loss_of_an_even_guess(make_stepper: MakeStepper) -> None:
    model = make_stepper().model.eval()
    torch.nn.init.zeros_(model.decoder.output.weight)
    batch = collate([SHORT, LONG])
    total, num_words = dev_loss(model.decoder, model.features(batch.pictures), batch, "fp32", CPU)
    assert num_words == 12
    assert total == pytest.approx(12 * math.log(11), rel=1e-5)


@pytest.mark.parametrize(("num_workers", "expected"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_groups_per_worker(num_workers: int, expected: int) -> None:
    assert groups_per_worker(TrainingConfig(batch_size=80, captions_per_picture=5), num_workers) == expected


def test_groups_that_cannot_be_shared_evenly() -> None:
    with pytest.raises(ValueError, match=r"80 captions are 16 pictures of 5, which 3 workers .* a multiple of 15"):
        groups_per_worker(TrainingConfig(batch_size=80, captions_per_picture=5), 3)
