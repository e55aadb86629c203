"""The compiled choice of continuations against one that sorts all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import computing_with
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.fused_ranking import rank, ranking_kernel

pytestmark = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")
Found = list[list[tuple[float, int, int]]]


def ranked(logits: Tensor, scores: Tensor, never: tuple[int, ...], count: int) -> Found:
    with torch.no_grad():
        kernel = ranking_kernel(logits)
    assert kernel is not None
    totals, origins, words = (part.tolist() for part in rank(kernel, logits, scores, never, count))
    return [list(zip(*beam, strict=True)) for beam in zip(totals, origins, words, strict=True)]


def by_sorting(logits: Tensor, scores: Tensor, never: tuple[int, ...], count: int) -> Found:
    """Of equal totals the one of the earlier row, then of the earlier word, as sorting is stable."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    found = []
    for picture, of_rows in enumerate(scores.double().tolist()):
        rows = range(picture * len(of_rows), (picture + 1) * len(of_rows))
        every = [
            (score + log_p[row, word].item(), row, word)
            for row, score in zip(rows, of_rows, strict=True)
            for word in range(logits.shape[1])
            if word not in never
        ]
        found.append(sorted(every, key=lambda total: -total[0])[:count])
    return found


def test_two_rows_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4 and 1/8, 3/8, 1/2; the second row's caption is half as probable so far.
    logits = torch.tensor([[4.0, 2.0, 2.0], [1.0, 3.0, 4.0]]).log()
    scores = torch.tensor([[0.0, math.log(0.5)]])
    (found,) = ranked(logits, scores, (1,), 3)
    assert [(row, word) for _, row, word in found] == [(0, 0), (0, 2), (1, 2)]
    assert [math.exp(total) for total, _, _ in found] == pytest.approx([0.5, 0.25, 0.25])


@settings(max_examples=80, deadline=None, derandomize=True)  # else a near tie turns up some day
@given(
    pictures=st.integers(1, 4),
    rows=st.integers(1, 5),
    words=st.integers(11, 100),
    count=st.integers(1, 10),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_the_best_are_those_of_sorting(
    pictures: int, rows: int, words: int, count: int, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(pictures * rows, words, generator=generator)
    scores = -3 * torch.rand(pictures, rows, generator=generator)
    with computing_with(threads):
        mine = ranked(logits, scores, (0, 3), min(count, words - 2))
    for beam, expected in zip(mine, by_sorting(logits, scores, (0, 3), min(count, words - 2)), strict=True):
        assert [total for total, _, _ in beam] == pytest.approx([total for total, _, _ in expected], abs=1e-4)
        assert [(row, word) for _, row, word in beam] == [(row, word) for _, row, word in expected]


def test_of_equal_ones_the_first_by_row_and_word() -> None:
    (found,) = ranked(torch.zeros(2, 70), torch.zeros(1, 2), (0,), 3)
    assert [(row, word) for _, row, word in found] == [(0, 1), (0, 2), (0, 3)]


def test_rows_without_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="of 2 rows, with scores for 1 times 3"):
        ranked(torch.zeros(2, 7), torch.zeros(1, 3), (0,), 3)
    with pytest.raises(ValueError, match="the 0 best"):
        ranked(torch.zeros(2, 7), torch.zeros(1, 2), (0,), 0)


def test_fewer_than_are_asked_for_and_no_numbers() -> None:
    """What there is not has a total of minus infinity, and a row of its own picture."""
    logits = torch.zeros(2, 3)
    logits[1] = torch.nan
    first, second = ranked(logits, torch.zeros(2, 1), (0, 1), 2)
    assert first == [(pytest.approx(-math.log(3)), 0, 2), (-math.inf, 0, 0)]
    assert second == [(-math.inf, 1, 0), (-math.inf, 1, 0)]
