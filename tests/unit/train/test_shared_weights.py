import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import together
from tiny import build_stepper
from torch import nn

from caption_ray.data.batches import CaptionBatch, PictureGroup, collate
from caption_ray.train.neighbours import Neighbours
from caption_ray.train.shared_weights import SharedWeights, trained
from caption_ray.train.state import STATE_NAME, Progress, load_state, save_state
from caption_ray.train.steps import StepCounts, Stepper

SETTINGS = {"average_decay": 0.5, "dropout": 0.0, "max_grad_norm": 0.01, "double": True}


class Matrices(nn.Module):
    """Weights of some shapes, one of which does not train."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.full((3,), 7.0), requires_grad=False)
        self.weights = nn.ParameterList(torch.full(shape, float(number)) for number, shape in enumerate(shapes))


shapes = st.lists(st.lists(st.integers(1, 40), max_size=2).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 5))
def test_each_number_is_one_workers(shapes: list[tuple[int, ...]], num_workers: int) -> None:
    """Each worker adds one to its parts: everywhere it is one more, for all; and no gradient is lost or counted twice.

    The gradient of the k-th worker is k + 1 everywhere.
    """
    total = num_workers * (num_workers + 1) / 2
    num_weights = sum(math.prod(shape) for shape in shapes)

    def work(own: Neighbours) -> None:
        model = Matrices(shapes)
        shared = SharedWeights(own, trained(model))
        for weight in shared.weights:
            weight.grad = torch.full_like(weight, own.rank + 1)
        norm = shared.sum_gradients()
        assert float(norm) == pytest.approx(total * math.sqrt(num_weights))
        gradients = shared.own([weight.grad for weight in shared.weights if weight.grad is not None])
        for part, gradient in zip(shared.own(shared.weights), gradients, strict=True):
            assert gradient.unique().tolist() == [total]
            part += 1
        own.wait()
        for number, weight in enumerate(model.weights):
            assert torch.equal(weight, torch.full_like(weight, number + 1))
        assert model.fixed.tolist() == [7.0] * 3

    together(num_workers, work)


def test_parts_are_of_one_size() -> None:
    """Of 10,000 numbers in cache lines of 64 two workers have half each, and three a third, to a line."""
    for num_workers in (2, 3):
        sizes = together(
            num_workers,
            lambda own: sum(
                part.numel()
                for shared in [SharedWeights(own, trained(Matrices([(64, 100), (3600,)])))]
                for part in shared.own(shared.weights)
            ),
        )
        assert sum(sizes) == 10_000
        assert max(sizes) - min(sizes) <= 2 * 64


def test_weights_lie_in_memory_as_they_did() -> None:
    """A convolution's, channels last, for which it is quicker; their parts are of memory's order."""

    def work(own: Neighbours) -> list[float]:
        torch.manual_seed(0)
        model = nn.Conv2d(64, 8, 3, bias=False).to(memory_format=torch.channels_last)
        before = model.weight.detach().clone()
        shared = SharedWeights(own, trained(model))
        assert torch.equal(model.weight, before)
        assert model.weight.is_contiguous(memory_format=torch.channels_last)
        pictures = torch.ones(1, 64, 3, 3) * (own.rank + 1)
        model(pictures).sum().backward()
        shared.sum_gradients()
        (gradient,), (part,) = shared.own([model.weight.grad]), shared.own(shared.weights)
        assert gradient.unique().tolist() == [3.0]
        part -= gradient
        own.wait()
        assert torch.allclose(model.weight, before - 3.0, atol=1e-6)
        return part.tolist()

    first, second = together(2, work)
    torch.manual_seed(0)
    in_order = nn.Conv2d(64, 8, 3, bias=False).weight.detach().permute(0, 2, 3, 1).flatten() - 3.0
    assert torch.allclose(torch.tensor(first + second), in_order, atol=1e-6)


def batch_of(rank: int, seed: int) -> CaptionBatch:
    grid = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * seed + rank)).double().numpy()
    return collate([PictureGroup(picture=grid, captions=((4, 5 + rank), (6, 7, 8)))])


def step(stepper: Stepper, seed: int) -> None:
    """Do a step of both workers' batches, or of this worker's own."""
    together = StepCounts(num_words=14, num_captions=4)
    if stepper.shared is None:
        grids = [batch_of(rank, seed) for rank in (0, 1)]
        groups = [
            PictureGroup(picture=grid.pictures[0].numpy(), captions=((4, 5 + rank), (6, 7, 8)))
            for rank, grid in enumerate(grids)
        ]
        stepper.step(collate(groups), together)
    else:
        stepper.step(batch_of(stepper.shared.neighbours.rank, seed), together)


def smooth(stepper: Stepper) -> Stepper:
    for group in stepper.optimizer.param_groups:
        group["eps"] = 0.1  # else AdamW makes a whole step of a gradient that is a rounding error
    return stepper


def everything(stepper: Stepper) -> list[torch.Tensor]:
    assert stepper.average is not None
    states = [stepper.optimizer.state[weight] for weight in stepper.model.parameters()]
    return [
        tensor.detach().clone()
        for tensor in (
            *stepper.model.parameters(),
            *stepper.average.parameters(),
            *(state[name] for state in states for name in ("step", "exp_avg", "exp_avg_sq")),
        )
    ]


Make = Callable[[], Stepper]


def test_a_checkpoint_goes_on_with_more_workers_or_fewer(tmp_path: Path) -> None:
    """One step by one worker, one by two, one by one: what three by one come to."""
    alone = smooth(build_stepper(**SETTINGS))
    first = smooth(build_stepper(**SETTINGS))
    step(alone, 1)
    step(first, 1)
    start = everything(alone)
    save_state(tmp_path, first, Progress(), {})
    bytes_alone = (tmp_path / STATE_NAME).stat().st_size
    step(alone, 2)

    def go_on(own: Neighbours) -> list[torch.Tensor]:
        stepper = smooth(build_stepper(**SETTINGS, share=lambda model: SharedWeights(own, trained(model))))
        step(stepper, 9)  # whatever it held is replaced
        load_state(tmp_path, stepper)
        own.wait()
        step(stepper, 2)
        if own.rank == 1:
            save_state(tmp_path, stepper, Progress(), {})
        own.wait()
        return everything(stepper)

    for found in together(2, go_on):
        for value, expected in zip(found, everything(alone), strict=True):
            assert torch.allclose(value, expected, rtol=0, atol=1e-7)
    assert (tmp_path / STATE_NAME).stat().st_size == pytest.approx(bytes_alone, rel=0.02)  # no more than its own

    last = smooth(build_stepper(**SETTINGS))
    load_state(tmp_path, last)
    step(alone, 3)
    step(last, 3)
    for value, expected, began in zip(everything(last), everything(alone), start, strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-7)
        assert not torch.equal(value, began)


def test_a_checkpoint_without_moments_begins_without() -> None:
    """As that of an optimiser which has done no step."""
    fresh = build_stepper(**SETTINGS).optimizer.state_dict()

    def begin_again(own: Neighbours) -> set[float]:
        stepper = build_stepper(**SETTINGS, share=lambda model: SharedWeights(own, trained(model)))
        step(stepper, 1)
        stepper.optimizer.load_state_dict(fresh)
        own.wait()
        states = [stepper.optimizer.state[weight] for weight in stepper.model.parameters()]
        return {float(value) for state in states for name in state for value in state[name].flatten()}

    assert together(2, begin_again) == [{0.0}, {0.0}]
