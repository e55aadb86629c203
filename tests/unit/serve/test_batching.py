"""Sizes of batches, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_ray.serve.batching import BatchOptions, Load

OPTIONS = BatchOptions(max_batch_size=16, return_wait_s=0.05, num_threads=2)


def load(computing: dict[int, int], *answered: tuple[int, float]) -> Load:
    """Return the load after thread 0 has answered so many pictures at such times."""
    found = Load({0: sum(num for num, _ in answered), **computing})
    for num_pictures, at in answered:
        found.answer(0, num_pictures, at)
    return found


@pytest.mark.parametrize(
    ("number", "num_waiting", "computing", "share"),
    [(0, 1, {}, 1), (0, 16, {}, 8), (1, 8, {0: 8}, 8), (0, 7, {}, 4), (0, 15, {1: 1}, 8), (0, 80, {}, 16)],
)
def test_each_thread_takes_its_part_of_the_whole(
    number: int, num_waiting: int, computing: dict[int, int], share: int
) -> None:
    assert Load(computing).share(number, num_waiting, 2, OPTIONS, now=9.0) == share


def test_three_threads_share_four_pictures_as_evenly_as_can_be() -> None:
    assert Load().share(0, 4, 3, OPTIONS, now=9.0) == 2
    assert Load({0: 2}).share(1, 2, 3, OPTIONS, now=9.0) == 1
    assert Load({0: 2, 1: 1}).share(2, 1, 3, OPTIONS, now=9.0) == 1
    assert Load({1: 15}).share(0, 1, 2, OPTIONS, now=9.0) == 1


def test_who_was_answered_together_is_waited_for() -> None:
    """Fifteen were answered, two of them ask again, and one is being computed: eight make a batch."""
    fifteen = load({1: 1}, (15, 1.0))
    fifteen.ask(2)
    assert fifteen.expected(1.01, 0.05) == 13
    assert fifteen.share(0, 2, 2, OPTIONS, 1.01) == 8
    assert fifteen.wait_s(0, 2, 1.01, 2, OPTIONS, 1.01) == pytest.approx(0.04)
    fifteen.ask(6)
    assert fifteen.wait_s(0, 8, 1.01, 2, OPTIONS, 1.02) == 0
    # Those who do not come back are forgotten.
    assert fifteen.share(0, 8, 2, OPTIONS, 1.06) == 5
    assert fifteen.wait_s(0, 2, 1.01, 2, OPTIONS, 1.06) == 0


def test_who_is_back_is_of_those_answered_first_and_no_more_than_they_are() -> None:
    both = load({}, (2, 1.0), (3, 1.04))
    both.ask(4)
    assert both.expected(1.04, 0.05) == 1
    assert both.expected(1.06, 0.05) == 1  # of the three, for those answered earlier are all back


def test_a_single_client_waits_for_nobody() -> None:
    single = load({}, (1, 1.0))
    single.ask(1)
    for num_threads in (1, 2):
        assert single.share(0, 1, num_threads, OPTIONS, 1.01) == 1
        assert single.wait_s(0, 1, 1.01, num_threads, OPTIONS, 1.01) == 0


def test_nobody_is_waited_for_who_is_still_being_computed() -> None:
    assert Load({1: 15}).wait_s(0, 1, 1.0, 2, OPTIONS, 1.0) == 0


def test_first_of_a_batch_waits_as_long_as_it_is_told_to() -> None:
    patient = BatchOptions(max_batch_size=4, batch_wait_s=0.5)
    assert Load().wait_s(0, 1, 1.0, 2, patient, 1.1) == pytest.approx(0.4)
    assert Load().wait_s(0, 4, 1.0, 2, patient, 1.1) == 0


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(1, 20), st.floats(0, 0.1)), max_size=30),
    num_waiting=st.integers(1, 40),
)
def test_wait_is_bounded_and_a_batch_is_never_empty(events: list[tuple[bool, int, float]], num_waiting: int) -> None:
    found, now = Load({0: 1000}), 0.0
    for is_answer, num_pictures, pause_s in events:
        now += pause_s
        if is_answer:
            found.answer(0, num_pictures, now)
        else:
            found.ask(num_pictures)
    found.computing.clear()
    assert 1 <= found.share(0, num_waiting, 2, OPTIONS, now) <= OPTIONS.max_batch_size
    assert 0 <= found.wait_s(0, num_waiting, now, 2, OPTIONS, now) <= OPTIONS.return_wait_s + 1e-9
    # Whoever waits, it is only for as many as were answered and have not come back.
    if found.wait_s(0, num_waiting, now, 2, OPTIONS, now):
        assert found.expected(now, OPTIONS.return_wait_s) > 0
