"""One worker and two agree: the same steps in one process and in two, in each way that workers go together."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from tiny import FEATURES, REGIONS, build_stepper
from torch.nn.parallel import DistributedDataParallel

from caption_ray.data.batches import CaptionBatch, PictureGroup, collate
from caption_ray.model.caption_model import CaptionModel
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train import agreement
from caption_ray.train.agreement import all_agree, all_reduce, broadcast_weights
from caption_ray.train.averaging import average_weights
from caption_ray.train.dev import DevResult, DevShare, gather_result
from caption_ray.train.graphed import GraphedLoss
from caption_ray.train.shared_weights import SharedWeights, share_weights
from caption_ray.train.steps import StepCounts, Stepper

CPU = torch.device("cpu")
NUM_WORKERS = 2


def group(seed: int, *captions: tuple[int, ...]) -> PictureGroup:
    grid = torch.randn(REGIONS, FEATURES, generator=torch.Generator().manual_seed(seed)).numpy()
    return PictureGroup(picture=grid, captions=captions)


# For each step the pictures of each worker. Words, an <end> for each caption included: 3 and 9, 13 and 2, 4 and none,
# 5 and none; then nobody has any left.
SHARES: tuple[tuple[tuple[PictureGroup, ...], ...], ...] = (
    ((group(1, (4, 5)),), (group(2, (6, 7, 8, 9, 10), (4, 9)),)),
    ((group(3, (5, 6, 7, 8), (10,)), group(4, (4, 4, 9), (8,))), (group(5, (6,)),)),
    ((group(6, (9, 8, 7)),), ()),
    ((group(7, (5,), (10, 4)),), ()),
)
COUNTS = (StepCounts(12, 3), StepCounts(15, 5), StepCounts(4, 1), StepCounts(5, 2))

# Trained with the whole gradient at rate 1. Its norm is 0.33 in two steps and 0.47 to 0.5, so clipped, in the others.
SETTINGS: dict[str, Any] = {
    "plain_sgd": True,
    "double": True,
    "attention_penalty": 0.5,
    "average_decay": 0.5,
    "max_grad_norm": 0.4,
}
WAYS = ("under DDP", "as on GPUs", "sharing weights")

DEV_SHARES = (
    DevShare(
        predicted={"a.jpg": ("a", "dog", "runs")},
        references={"a.jpg": [["a", "dog", "runs", "on", "grass"]]},
        loss_sum=9.0,
        num_words=6,
        num_rows=1,
    ),
    DevShare(
        predicted={"b.jpg": ("a", "ball"), "c.jpg": ("grass",)},
        references={"b.jpg": [["a", "ball"]], "c.jpg": [["grass"], ["a", "dog"]]},
        loss_sum=1.5,
        num_words=8,
        num_rows=2,
    ),
)


@dataclass(kw_only=True)
class Outcome:
    """What a process ended with: weights and their average, and what each step counted and returned."""

    weights: torch.Tensor
    average: torch.Tensor
    moments: dict[str, list[torch.Tensor]]
    counts: list[StepCounts]
    loss_sums: list[float]
    sum_of_ranks: float
    stops: list[bool]
    dev: DevResult
    formats: list[str]
    first: int


UNLIKE = (("bf16", "bf16"), ("bf16", "fp16"), ("fp32", "bf16"))
"""Number formats that two workers find for themselves."""


def shared_format(rank: int, found: tuple[str, ...]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "resolve_precision", lambda *_: found[rank])
        return agreement.shared_precision("auto", CPU)


def run_steps(stepper: Stepper, batches: list[CaptionBatch], dev: DevShare, rank: int) -> Outcome:
    counts, loss_sums = [], []
    for batch, together in stepper.counted(batches):
        counts.append(together)
        loss_sums.append(float(stepper.step(batch, together)[0]))
    ranks = torch.tensor([float(rank)])
    all_reduce(ranks)
    assert stepper.average is not None
    stops = [counts.stop for _, counts in stepper.counted(batches, lambda: rank == 1)]
    return Outcome(
        weights=torch.nn.utils.parameters_to_vector(stepper.model.parameters()).detach(),
        average=torch.nn.utils.parameters_to_vector(stepper.average.parameters()).detach(),
        moments=moments_of(stepper),
        counts=counts,
        loss_sums=loss_sums,
        sum_of_ranks=float(ranks),
        stops=stops,
        formats=[shared_format(rank, found) for found in UNLIKE],
        first=agreement.from_first(rank),
        dev=gather_result(dev, Vocabulary(("<pad>", "<start>", "<end>", "<unk>", "a", "dog", "runs", "on")), 3),
    )


def moments_of(stepper: Stepper) -> dict[str, list[torch.Tensor]]:
    """Return what AdamW keeps of each weight; nothing of plain SGD."""
    states = [stepper.optimizer.state[weight] for weight in stepper.model.parameters()]
    return {name: [state[name].clone() for state in states] for name in states[0]}


def build(way: str, share: Callable[[CaptionModel], SharedWeights | None] = lambda _: None) -> Stepper:
    """Return a stepper of all workers, or of one of them, with plain SGD; with AdamW where the optimiser is sharded."""
    if way != "sharing weights":
        return build_stepper(**SETTINGS)
    stepper = build_stepper(**SETTINGS | {"plain_sgd": False, "dropout": 0.0}, share=share)
    for group in stepper.optimizer.param_groups:
        group["eps"] = 0.1  # else AdamW makes a whole step of a gradient that is a rounding error
    return stepper


def batches_of(*ranks: int) -> list[CaptionBatch]:
    """Return each step's batch of the pictures that some workers have, as long as they have any."""
    pictures = [[group for rank in ranks for group in step[rank]] for step in SHARES]
    return [collate(groups) for groups in pictures if groups]


def run_worker(rank: int, folder: str, way: str) -> None:
    """Do one of two workers' steps; the target of the processes that `two_workers` starts."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=NUM_WORKERS,
        timeout=timedelta(seconds=120),
    )
    try:
        stepper = build(way, share_weights)
        if way == "as on GPUs":
            assert all_agree(True, CPU)
            assert not all_agree(rank == 1, CPU)
            with torch.no_grad():
                for weight in stepper.model.parameters():  # each worker but the first begins elsewhere
                    weight += rank
            broadcast_weights(stepper.model)
            stepper.average = average_weights(stepper.model, stepper.settings.training.average_decay)
            stepper.graphed = GraphedLoss(stepper.model, stepper.settings.training, "fp32", CPU, num_pictures=2)
        elif way == "under DDP":
            stepper.wrapped = DistributedDataParallel(stepper.model)
        else:
            assert stepper.shared is not None
        torch.save(run_steps(stepper, batches_of(rank), DEV_SHARES[rank], rank), Path(folder, f"{rank}.pt"))
        del stepper  # DDP's threads must end before the process group does, or now and then the process aborts
        gc.collect()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, way: str) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("two_workers")
    torch.multiprocessing.spawn(run_worker, (str(folder), way), nprocs=NUM_WORKERS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(NUM_WORKERS)]


@pytest.fixture(scope="module")
def one_worker(way: str) -> Outcome:
    dev = DevShare()
    for share in DEV_SHARES:
        dev.add(share)
    return run_steps(build(way), batches_of(0, 1), dev, rank=0)


def test_one_worker_and_two_end_with_the_same_weights(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    """In double precision, but for the softmax of the loss, which is always taken in single: hence 1e-7, not less."""
    start = torch.nn.utils.parameters_to_vector(build_stepper(**SETTINGS).model.parameters()).detach()
    assert float((one_worker.weights - start).abs().max()) > (0.01 if one_worker.moments else 0.1)
    assert torch.equal(two_workers[0].weights, two_workers[1].weights)
    for outcome in two_workers:
        assert float((outcome.weights - one_worker.weights).abs().max()) < 1e-7
        assert float((outcome.average - one_worker.average).abs().max()) < 1e-7


def test_all_workers_have_the_optimizer_of_one(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    """So a checkpoint is the same whichever of them writes it, and however many train."""
    for outcome in two_workers:
        assert outcome.moments.keys() == one_worker.moments.keys()
        for name, values in outcome.moments.items():
            for value, expected in zip(values, one_worker.moments[name], strict=True):
                assert torch.allclose(value, expected, rtol=0, atol=1e-7), name


def test_workers_count_together_and_return_the_loss_of_their_own_words(
    one_worker: Outcome, two_workers: list[Outcome]
) -> None:
    assert [outcome.counts for outcome in (one_worker, *two_workers)] == [list(COUNTS)] * 3
    assert two_workers[1].loss_sums[2:] == [0.0, 0.0]
    together = [sum(losses) for losses in zip(*(outcome.loss_sums for outcome in two_workers), strict=True)]
    assert together == pytest.approx(one_worker.loss_sums, rel=1e-5)
    assert (one_worker.sum_of_ranks, *(outcome.sum_of_ranks for outcome in two_workers)) == (0.0, 1.0, 1.0)


def test_what_one_worker_is_asked_all_of_them_hear(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    assert [outcome.stops for outcome in two_workers] == [[True], [True]]  # before the first step, then no more
    assert one_worker.stops == [False] * len(one_worker.counts)


def test_every_worker_gathers_the_whole_dev_result(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    for outcome in (one_worker, *two_workers):
        assert outcome.dev.scores.num_pictures == 3
        assert outcome.dev.loss == pytest.approx(10.5 / 14)
        assert outcome.dev.scores == one_worker.dev.scores


def test_workers_on_unlike_hardware_compute_in_one_format(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    assert [outcome.formats for outcome in two_workers] == [["bf16", "fp16", "fp32"]] * 2
    assert one_worker.formats == ["bf16", "bf16", "fp32"]


def test_every_worker_hears_what_the_first_has_found(one_worker: Outcome, two_workers: list[Outcome]) -> None:
    assert [outcome.first for outcome in (one_worker, *two_workers)] == [0, 0, 0]
