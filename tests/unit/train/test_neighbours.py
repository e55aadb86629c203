import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhood import ends, together

from caption_ray.errors import RunError
from caption_ray.train import neighbours
from caption_ray.train.neighbours import Neighbours


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(-99, 99), st.booleans()), min_size=1, max_size=4))
def test_all_have_the_same_sums(rows: list[tuple[float, int, bool]]) -> None:
    found = together(len(rows), lambda own: [own.sum(*rows[own.rank]), own.sum(own.rank)])
    assert all(each == found[0] for each in found)
    sums, ranks = found[0]
    assert sums == pytest.approx([sum(column) for column in zip(*rows, strict=True)])
    assert ranks == (sum(range(len(rows))),)


def test_nobody_goes_on_before_all_have_come() -> None:
    """A hundred times each of three adds one to its own count, and finds the others' where its own is."""

    def count(own: Neighbours) -> bool:
        counts = memoryview(own.memory).cast("q")
        seen = []
        for step in range(100):
            if step == 50 and own.rank == 1:
                time.sleep(0.01)  # longer than anybody looks for it
            counts[own.rank] = step
            own.wait()
            seen.append(set(counts[: own.num_workers]) == {step})
            own.wait()
        return all(seen)

    assert together(3, count) == [True] * 3


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("asleep", [False, True])
def test_a_worker_that_is_gone_is_told(rank: int, asleep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a moment in which Ray may hear of what the other died of."""
    if asleep:
        monkeypatch.setattr(neighbours, "_SPIN_S", 0.0)
    monkeypatch.setattr(neighbours, "_MOURNING_S", 0.3)
    began = time.monotonic()
    with ends(2) as workers:
        workers[1 - rank].close()
        with pytest.raises(RunError, match="another worker of this machine is gone"):
            workers[rank].wait()
    assert time.monotonic() - began > 0.3


def test_a_worker_that_does_not_come_is_told_of_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_PATIENCE_S", 1)
    began = time.monotonic()
    with ends(2) as (first, _), pytest.raises(RunError, match="has not come along for 1 s"):
        first.wait()
    assert 0.9 < time.monotonic() - began < 5


def test_messages_keep_apart() -> None:
    """Two sums of unlike lengths, the second on its way before the first is read."""
    with ends(2) as (first, second):
        (peer,) = second._peers
        neighbours._send(peer, (1.0, 2.0))
        neighbours._send(peer, (3.0,))
        assert (first.sum(10.0, 20.0), first.sum(30.0)) == ((11.0, 22.0), (33.0,))


@pytest.mark.parametrize("mine", [(1.0,), (1.0, 2.0, 3.0)])
def test_workers_that_are_not_in_step_are_told(mine: tuple[float, ...]) -> None:
    with ends(2) as (first, second):
        neighbours._send(second._peers[0], (1.0, 2.0))
        with pytest.raises(RunError, match="not at the same point of a step"):
            first.sum(*mine)
