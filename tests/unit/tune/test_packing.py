import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_ray.errors import UsageError
from caption_ray.tune.packing import pack_trials

TWO_P100 = {"CPU": 28.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "num_at_once", "reserved", "threads"),
    [
        ([{"CPU": 2.0}], {}, 2, {"CPU": 1.0}, 1),
        ([{"CPU": 2.0}], {"cpus_per_trial": 0.5}, 4, {"CPU": 0.5}, 1),
        ([{"CPU": 2.0}], {"cpus_per_trial": 2.0}, 1, {"CPU": 2.0}, 2),
        ([{"CPU": 2.0}], {"kept_cpus": 1}, 1, {"CPU": 1.0}, 1),
        ([{"CPU": 3.0}], {"cpus_per_trial": 2.0, "kept_cpus": 1}, 1, {"CPU": 2.0}, 2),
        ([{"CPU": 4.0}], {"num_at_once": 3}, 3, {"CPU": 1.0}, 1),
        ([{"CPU": 2.0}], {"num_at_once": 3}, 2, {"CPU": 1.0}, 1),
        ([TWO_P100], {}, 8, {"CPU": 1.0, "GPU": 0.25}, 0),
        ([TWO_P100], {"gpus_per_trial": 0.5}, 4, {"CPU": 1.0, "GPU": 0.5}, 0),
        # Two on each; a fifth would be on what is left of both.
        ([TWO_P100], {"gpus_per_trial": 0.4}, 4, {"CPU": 1.0, "GPU": 0.4}, 0),
        # A third of a GPU thrice, not the six sevenths of both that seven would be.
        ([TWO_P100], {"gpus_per_trial": 0.3}, 6, {"CPU": 1.0, "GPU": 0.3}, 0),
        ([TWO_P100, TWO_P100], {"gpus_per_trial": 1.0}, 4, {"CPU": 1.0, "GPU": 1.0}, 0),
        ([{"CPU": 3.0, "GPU": 2.0}], {}, 3, {"CPU": 1.0, "GPU": 0.25}, 0),
        # Each has 0.27 GB besides, for the process that waits for it: 16 GB hold three of 5 GB.
        ([{**TWO_P100, "memory": 16e9}], {"memory_per_trial_gb": 5.0}, 3, {"CPU": 1.0, "GPU": 0.25, "memory": 5e9}, 0),
        ([{"CPU": 2.0, "memory": 16e9}], {"memory_per_trial_gb": 5.0}, 2, {"CPU": 1.0, "memory": 5e9}, 1),
        ([TWO_P100], {"device": "cpu"}, 28, {"CPU": 1.0}, 1),
        # Half a CPU left on each of two nodes is none to Ray Data, which one of them keeps a whole one for.
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_trial": 1.5}, 2, {"CPU": 1.5}, 1),
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_trial": 1.5, "kept_cpus": 1}, 1, {"CPU": 1.5}, 1),
        ([{"CPU": 2.0}, {"CPU": 3.0}], {"cpus_per_trial": 2.0, "kept_cpus": 1}, 2, {"CPU": 2.0}, 2),
        # Six could be placed three on each.
        ([{"CPU": 2.0}, {"CPU": 2.0}], {"cpus_per_trial": 0.5, "kept_cpus": 1}, 5, {"CPU": 0.5}, 1),
    ],
)
def test_trials_that_fit(
    nodes: list[dict[str, float]], asked: dict[str, object], num_at_once: int, reserved: dict[str, float], threads: int
) -> None:
    packing = pack_trials(nodes, **asked)  # type: ignore[arg-type]
    assert packing.num_at_once == num_at_once
    assert packing.workers.per_worker == reserved
    assert (packing.workers.num_workers, packing.workers.threads_per_worker) == (1, threads)
    assert packing.workers.gpu_share == reserved.get("GPU", 1.0)


@pytest.mark.parametrize(
    ("node", "asked", "message"),
    [
        ({"CPU": 2.0}, {"cpus_per_trial": 3.0}, r"asks for 3 CPU\(s\), and the cluster has 2 CPU\(s\) and 0 GPU\(s\)"),
        ({"CPU": 1.0}, {"kept_cpus": 1}, "of which 1 must be left for Ray Data"),
        (
            {"CPU": 2.0, "memory": 4e9},
            {"memory_per_trial_gb": 4.0},
            r"and 4 GB of memory beside 0.27 GB to wait with, and .* and 4 GB on its largest node",
        ),
        ({"CPU": 2.0}, {"device": "gpu"}, "--device gpu: the cluster has 2 CPU"),
        (TWO_P100, {"gpus_per_trial": 2.0}, "a trial is a single worker, which has one GPU at most"),
    ],
)
def test_trial_that_would_wait_for_ever_is_refused(
    node: dict[str, float], asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pack_trials([node], **asked)  # type: ignore[arg-type]


@given(
    cpus=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=2),
    cpus_per_trial=st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0]),
)
def test_however_trials_are_placed_some_node_keeps_a_cpu(cpus: list[float], cpus_per_trial: float) -> None:
    def leaves_a_cpu(num_trials: int) -> bool:
        places = itertools.product(*(range(int(each / cpus_per_trial) + 1) for each in cpus))
        return all(
            any(each - held * cpus_per_trial >= 1 for each, held in zip(cpus, place, strict=True))
            for place in places
            if sum(place) == num_trials
        )

    nodes = [{"CPU": each} for each in cpus]
    room = sum(int(each / cpus_per_trial) for each in cpus)
    most = max((number for number in range(room + 1) if leaves_a_cpu(number)), default=0)
    if most == 0:
        with pytest.raises(UsageError):
            pack_trials(nodes, cpus_per_trial=cpus_per_trial, kept_cpus=1)
    else:
        assert pack_trials(nodes, cpus_per_trial=cpus_per_trial, kept_cpus=1).num_at_once == most
