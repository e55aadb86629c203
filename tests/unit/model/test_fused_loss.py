"""The compiled cross-entropy against torch's, and what it must refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threads import computing_with
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.fused_loss import cross_entropy
from caption_ray.model.loss import caption_loss

needs_kernel = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")


def run(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the losses of the words, and the gradient of their sum with the weights 1, 2, 3, ..."""
    leaf = logits.clone().requires_grad_()
    losses = cross_entropy(leaf, targets, smoothing)
    assert losses is not None
    (losses * (1 + torch.arange(len(targets)))).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == logits.dtype
    return losses.detach(), leaf.grad


@needs_kernel
def test_loss_and_gradient_by_hand() -> None:
    # p = 1/2, 1/4, 1/4: the loss of the second is ln 4, its gradient p - (0, 1, 0).
    losses, gradient = run(torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([1]), 0.0)
    assert losses.tolist() == pytest.approx([math.log(4)])
    assert gradient[0].tolist() == pytest.approx([0.5, -0.75, 0.25])


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    words=st.integers(1, 9),
    padding=st.integers(0, 3),
    vocabulary=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    scale=st.sampled_from([0.1, 3.0, 300.0]),
    half=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@example(words=2, padding=0, vocabulary=14, smoothing=0.0, scale=300.0, half=False, threads=1, seed=31)
@example(words=9, padding=1, vocabulary=53, smoothing=0.1, scale=300.0, half=False, threads=1, seed=99)
def test_it_is_torchs(
    words: int, padding: int, vocabulary: int, smoothing: float, scale: float, half: bool, threads: int, seed: int
) -> None:
    """In double precision by torch, of the same logits; gradients of rows without a target are zeros."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(words + padding, vocabulary, generator=generator)
    logits = logits.bfloat16() if half else logits
    targets = torch.randint(vocabulary, (words,), generator=generator)
    with computing_with(threads):
        losses, gradient = run(logits, targets, smoothing)

    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact[:words], targets, reduction="none", label_smoothing=smoothing)
    (expected * (1 + torch.arange(words))).sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5 * max(1, scale))
    torch.testing.assert_close(
        gradient.double(), exact.grad, rtol=1e-2 if half else 1e-4, atol=(1e-4 if half else 1e-5) * words
    )


@needs_kernel
@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_word_is_an_error(target: int) -> None:
    with pytest.raises(IndexError, match=r"but 3 words"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, target]), 0.0)


@needs_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_seen(bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 0] = bad
    losses, gradient = run(logits, torch.tensor([1, 1]), 0.0)
    assert losses.isfinite().tolist() == [True, False]
    assert gradient.isfinite().all(1).tolist() == [True, False]


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.tensor([0, 1])
    for logits in (torch.zeros(2, 3).double(), torch.zeros(2, 3).half(), torch.zeros(2, 3, device="meta")):
        assert cross_entropy(logits, targets, 0.0) is None
    assert cross_entropy(torch.zeros(0, 3), targets[:0], 0.0) is None
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
    assert cross_entropy(torch.zeros(2, 3), targets, 0.0) is None


@pytest.mark.parametrize("kernel", ["auto", "off"])
def test_rows_without_a_target_are_ignored(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setenv("CAPTION_RAY_KERNEL", kernel)
    loss_sum, num_words = caption_loss(torch.zeros(5, 4), torch.tensor([0, 1, 2]))
    assert float(loss_sum) == pytest.approx(3 * math.log(4))
    assert num_words == 3
