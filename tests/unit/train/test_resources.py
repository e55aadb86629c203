from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caption_ray.errors import UsageError
from caption_ray.train.resources import plan_workers


@pytest.mark.parametrize(
    ("cluster", "request_", "expected"),
    [
        # workers, GPU, CPUs reserved for each, torch threads of each
        ({"CPU": 2.0}, {}, (1, False, 1.0, 2)),
        ({"CPU": 2.0}, {"num_workers": 2}, (2, False, 0.5, 1)),
        ({"CPU": 8.0}, {"num_workers": 2}, (2, False, 3.0, 4)),
        ({"CPU": 8.0}, {"num_workers": 3}, (3, False, 2.0, 2)),
        ({"CPU": 4.0}, {"num_workers": 4}, (4, False, 0.75, 1)),
        ({"CPU": 3.0}, {"num_workers": 3}, (3, False, 0.66, 1)),
        ({"CPU": 16.0, "GPU": 2.0}, {}, (2, True, 1.0, 0)),
        ({"CPU": 16.0, "GPU": 2.0}, {"num_workers": 1}, (1, True, 1.0, 0)),
        ({"CPU": 16.0, "GPU": 2.0}, {"cpus_per_worker": 7.5}, (2, True, 7.5, 0)),
        ({"CPU": 2.0, "GPU": 2.0}, {}, (2, True, 0.5, 0)),
        ({"CPU": 8.0, "GPU": 25.0}, {}, (25, True, 0.28, 0)),
        ({"CPU": 16.0, "GPU": 2.0}, {"device": "cpu"}, (1, False, 15.0, 16)),
        ({"CPU": 16.0, "GPU": 2.0}, {"device": "cpu", "num_workers": 5}, (5, False, 3.0, 3)),
        ({"CPU": 16.0}, {"cpus_per_worker": 4.0}, (1, False, 4.0, 4)),
        ({"CPU": 16.0}, {"num_workers": 2, "cpus_per_worker": 2.5}, (2, False, 2.5, 2)),
        ({"CPU": 16.0}, {"cpus_per_worker": 0.5}, (1, False, 0.5, 1)),
    ],
)
def test_plans_by_hand(
    cluster: dict[str, float], request_: dict[str, Any], expected: tuple[int, bool, float, int]
) -> None:
    plan = plan_workers([cluster], **request_)
    assert (plan.num_workers, plan.use_gpu, plan.cpus_per_worker, plan.threads_per_worker) == expected


def test_reservation_in_rays_terms() -> None:
    assert plan_workers([{"CPU": 2.0}]).per_worker == {"CPU": 1.0}
    assert plan_workers([{"CPU": 4.0, "GPU": 1.0}]).per_worker == {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("cluster", "request_", "message"),
    [
        (
            {"CPU": 2.0},
            {"num_workers": 3},
            r"--num-workers 3: each takes a CPU, and the cluster has 2 CPU\(s\) .*; ask for at most 2",
        ),
        (
            {"CPU": 16.0, "GPU": 2.0},
            {"num_workers": 3},
            r"--num-workers 3: each takes a GPU, .* 16 CPU\(s\) and 2 GPU\(s\); ask for at most 2",
        ),
        ({"CPU": 4.0}, {"device": "gpu"}, r"--device gpu: the cluster has 4 CPU\(s\) and 0 GPU\(s\)"),
        (
            {"CPU": 4.0},
            {"device": "gpu", "num_workers": 2},
            r"--device gpu: the cluster has 4 CPU\(s\) and 0 GPU\(s\); start it on a node with a GPU",
        ),
        (
            {"CPU": 4.0},
            {"num_workers": 2, "cpus_per_worker": 2.0},
            r"--num-workers 2 with 2 CPU\(s\) each: .* left for Ray Data; ask for at most 1 CPU\(s\) each",
        ),
        (
            {"CPU": 1.0},
            {},
            r"the cluster has 1 CPU\(s\) and 0 GPU\(s\), of which one must be left for Ray Data",
        ),
        (
            {"CPU": 1.0, "GPU": 1.0},
            {},
            r"1 CPU\(s\) and 1 GPU\(s\), of which one must be left for Ray Data; "
            r"ask for fewer workers, or start Ray with more CPUs \(--cpus-per-task in SLURM\)$",
        ),
    ],
)
def test_more_than_there_is_is_refused_at_once(
    cluster: dict[str, float], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_workers([cluster], **request_)


@given(st.integers(2, 256), st.integers(0, 64), st.data())
def test_every_plan_leaves_a_cpu(num_cpus: int, num_gpus: int, data: st.DataObject) -> None:
    cluster = {"CPU": float(num_cpus), "GPU": float(num_gpus)}
    most = num_gpus or num_cpus
    plan = plan_workers([cluster], num_workers=data.draw(st.integers(1, most)))
    assert plan.cpus_per_worker > 0
    assert plan.cpus_per_worker * plan.num_workers <= num_cpus - 1 + 1e-6
    assert plan.num_workers * max(plan.threads_per_worker, 1) <= max(num_cpus, num_gpus)


EIGHT = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "request_", "expected"),
    [
        # The CPU for Ray Data is kept on another node than the worker's.
        ([EIGHT, EIGHT], {}, (1, False, 8.0, 8)),
        ([EIGHT, EIGHT], {"num_workers": 2}, (2, False, 7.0, 8)),
        ([EIGHT, EIGHT], {"num_workers": 4}, (4, False, 3.0, 4)),
        ([{"CPU": 1.0}, EIGHT], {"num_workers": 2}, (2, False, 4.0, 4)),
        ([{"CPU": 16.0, "GPU": 2.0}] * 4, {}, (8, True, 1.0, 0)),
        ([{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], {"cpus_per_worker": 4.0}, (1, True, 4.0, 0)),
    ],
)
def test_workers_fit_on_nodes(
    nodes: list[dict[str, float]], request_: dict[str, Any], expected: tuple[int, bool, float, int]
) -> None:
    plan = plan_workers(nodes, **request_)
    assert (plan.num_workers, plan.use_gpu, plan.cpus_per_worker, plan.threads_per_worker) == expected


@pytest.mark.parametrize(
    ("nodes", "request_", "message"),
    [
        (
            [EIGHT, EIGHT],
            {"cpus_per_worker": 9.0},
            r"16 CPU.* and 0 GPU.* on 2 nodes, .* at most 8 CPU\(s\) each",
        ),
        ([EIGHT, EIGHT], {"num_workers": 2, "cpus_per_worker": 8.0}, r"ask for at most 7 CPU\(s\) each"),
        # The GPUs are on a node without CPUs to spare for both.
        ([EIGHT, {"CPU": 1.0, "GPU": 2.0}], {"cpus_per_worker": 1.0}, r"ask for at most 0\.5 CPU\(s\) each"),
    ],
)
def test_what_no_node_can_hold_is_refused_at_once(
    nodes: list[dict[str, float]], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_workers(nodes, **request_)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 3.0}, {"CPU": 3.0}], (2, 1, 2.0)),
        ([{"CPU": 3.0}], (2, 1, 2.0)),  # one of the two is lost: begins with one worker
    ],
)
def test_fewer_workers_will_do_where_a_node_is_lost(
    nodes: list[dict[str, float]], expected: tuple[int, int, float]
) -> None:
    plan = plan_workers(nodes, num_workers=2, min_workers=1, cpus_per_worker=2)
    assert (plan.num_workers, plan.min_workers, plan.cpus_per_worker) == expected
    assert plan.range == (1, 2)
    assert plan_workers(nodes).range == 1


def test_the_fewest_workers_must_fit() -> None:
    with pytest.raises(UsageError, match="--num-workers 2 with 2 CPU"):
        plan_workers([{"CPU": 3.0}], num_workers=3, min_workers=2, cpus_per_worker=2)
    with pytest.raises(UsageError, match="--min-workers 3: must be at most --num-workers, which is 2"):
        plan_workers([{"CPU": 8.0}], num_workers=2, min_workers=3)


FOUR, SIXTEEN, WITH_GPUS = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 4.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "num_workers", "min_workers", "expected"),
    [
        # CPUs reserved for each, torch threads of each
        ([SIXTEEN] * 3, 2, 1, (15.0, 16)),  # with 16 each, two nodes are full
        ([SIXTEEN] * 3, 4, 2, (7.0, 8)),  # with 8 each, two nodes are full; with 15, only 3 workers begin
        ([SIXTEEN], 4, 2, (3.0, 4)),  # two of three are lost already
        ([WITH_GPUS] * 2, 4, 2, (0.75, 0)),  # with 1 each, one node is full
        ([WITH_GPUS] * 2, 4, 4, (0.75, 0)),  # one node has room for all
        ([{"CPU": 16.0, "GPU": 2.0}] * 4, 8, 2, (1.0, 0)),
        ([{"CPU": 2.0, "GPU": 1.0}] * 2 + [{"CPU": 2.0, "GPU": 4.0}], 6, 3, (0.25, 0)),  # with 1 each, only 4 begin
        ([{"CPU": 2.0}], 4, 1, (0.25, 1)),  # with half a CPU each, all four start and fill it
        ([{"CPU": 1.0}, EIGHT], 2, 1, (3.0, 4)),  # what fits the small node would fill it
        ([FOUR] * 4, 8, 2, (3.0, 4)),  # with 0.37 each, all eight would lie on one node
    ],
)
def test_whatever_nodes_are_left_keep_a_cpu(
    nodes: list[dict[str, float]], num_workers: int, min_workers: int, expected: tuple[float, int]
) -> None:
    plan = plan_workers(nodes, num_workers=num_workers, min_workers=min_workers)
    assert (plan.num_workers, plan.min_workers) == (num_workers, min_workers)
    assert (plan.cpus_per_worker, plan.threads_per_worker) == expected


@pytest.mark.parametrize(
    ("nodes", "request_", "message"),
    [
        (
            [FOUR],
            {"num_workers": 4, "min_workers": 2, "cpus_per_worker": 1.0},
            r"--min-workers 2 with 1 CPU\(s\) each \(--cpus-per-worker\): Ray starts as many of 4 workers .* "
            r"one must be left for Ray Data, .*; ask for at most 0\.75 CPU\(s\) each \(--cpus-per-worker\), or start",
        ),
        (
            [SIXTEEN] * 3,
            {"num_workers": 4, "min_workers": 2, "cpus_per_worker": 8.0},
            r"ask for at most 7 CPU\(s\) each",
        ),
        (
            # Four of 4 would fill a node.
            [SIXTEEN] * 3,
            {"num_workers": 4, "min_workers": 1, "cpus_per_worker": 4.0},
            r"ask for at most 3 CPU\(s\) each",
        ),
        # Less would fit the small node still, and fill it.
        ([{"CPU": 1.0}, EIGHT], {"num_workers": 2, "min_workers": 1, "cpus_per_worker": 1.0}, r"; ask for 3 CPU\(s\)"),
        (
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}],
            {"num_workers": 2, "min_workers": 1},
            r"--min-workers 1: Ray starts .*; ask for 3 CPU\(s\) each",
        ),
        (
            [{"CPU": 1.0}] * 2,
            {"num_workers": 2, "min_workers": 1},
            r"--min-workers 1: Ray starts .*; start Ray with more CPUs .* on each node, or leave out --min-workers",
        ),
    ],
)
def test_a_share_that_may_leave_no_cpu_is_refused_at_once(
    nodes: list[dict[str, float]], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_workers(nodes, **request_)


Node = tuple[Fraction, int]
"""CPUs, and GPUs or -1 where workers take none."""


def room_of(node: Node, share: Fraction, kept: int = 0) -> int:
    """Return how many workers Ray counts on a node of which some CPUs are kept, in exact numbers."""
    num_cpus, num_gpus = node
    by_cpu = int((num_cpus - kept) // share)
    return min(by_cpu, num_gpus) if num_gpus >= 0 else by_cpu


def leaves_a_cpu(nodes: Sequence[Node], share: Fraction, most: int, fewest: int) -> bool:
    """Tell whether all hold the fewest, and each set of nodes that does holds a CPU beside what Ray starts there."""
    for size in range(1, len(nodes) + 1):
        for left in combinations(nodes, size):
            rooms = [room_of(node, share) for node in left]
            started = min(most, sum(rooms))
            beside = [
                sum(rooms) - room + room_of(node, share, 1)
                for node, room in zip(left, rooms, strict=True)
                if node[0] >= 1
            ]
            if started >= fewest and max(beside, default=0) < started:
                return False
    return sum(room_of(node, share) for node in nodes) >= fewest


HALVES = [Fraction(number, 2) for number in range(13)]


@given(
    st.lists(st.tuples(st.sampled_from(HALVES), st.integers(0, 3)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 8),
    st.integers(1, 8),
)
@example([(Fraction(1), 0), (Fraction(8), 0)], False, 2, 1)
@example([(Fraction(4), 4)] * 2, True, 4, 2)
@example([(Fraction(1, 2), 1), (Fraction(1, 2), 1), (Fraction(4), 1)], True, 2, 2)
@example([(Fraction(1, 2), 1), (Fraction(1), 1), (Fraction(4), 1)], True, 3, 2)
def test_on_any_nodes_what_ray_starts_leaves_a_cpu(drawn: list[Node], use_gpu: bool, one: int, other: int) -> None:
    fewest, most = sorted((one, other))
    nodes = drawn if use_gpu else [(num_cpus, -1) for num_cpus, _ in drawn]
    cluster = [{"CPU": float(num_cpus), "GPU": float(num_gpus)} for num_cpus, num_gpus in drawn]
    device = "gpu" if use_gpu else "cpu"
    hundredths = [*range(1, 101), *(() if use_gpu else range(200, 801, 100))]
    good = [share for share in hundredths if leaves_a_cpu(nodes, Fraction(share, 100), most, fewest)]
    try:
        plan = plan_workers(cluster, device=device, num_workers=most, min_workers=fewest)
    except UsageError:
        # A CPU worker takes a CPU at least.
        assert not good or (not use_gpu and fewest > sum(num_cpus for num_cpus, _ in nodes))
        return
    assert round(plan.cpus_per_worker * 100) in good
    if not use_gpu:
        share = Fraction(str(plan.cpus_per_worker))
        held = [(num_cpus, min(most, room_of((num_cpus, -1), share))) for num_cpus, _ in nodes]
        assert plan.threads_per_worker == 1 or all(plan.threads_per_worker * held_ <= cpus for cpus, held_ in held)
