"""The compiled loop against torch's operations, and where it must leave the work to them."""

import ctypes
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import computing_with
from torch import Tensor

from caption_ray.config import ModelConfig
from caption_ray.model import compiled, compiler
from caption_ray.model.caption_layout import CaptionLayout
from caption_ray.model.decoder import Decoder, active_rows, pack_steps
from caption_ray.model.fused import kernel_for
from caption_ray.model.loss import caption_loss
from caption_ray.model.recurrence import StepWeights, unroll

needs_kernel = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")

A, D, H = 64, 96, 32
NAMES = ("hidden states", "contexts", "attention", "word gates", "keys", "values", "hidden", "cell", "query", "score",
         "gate", "gate bias", "context", "state")  # fmt: skip


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turns the compiled loop on or off."""
    return lambda on: monkeypatch.setenv("CAPTION_RAY_KERNEL", "auto" if on else "off")


def inputs(lengths: Sequence[int], num_pictures: int, num_regions: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (sum(lengths), 4 * H), (num_pictures, num_regions, A), (num_pictures, num_regions, D), (num_pictures, H),
        (num_pictures, H), (A, H), (A,), (1, H), (1,), (4 * H, D), (4 * H, H),
    ]  # fmt: skip
    scales = [1, 1, 1, 0.5, 0.5, H**-0.5, 1, H**-0.5, 1, D**-0.5, H**-0.5]
    return [scale * torch.randn(shape, generator=generator) for scale, shape in zip(scales, shapes, strict=True)]


def run(
    layout: CaptionLayout, tensors: Sequence[Tensor], dtype: torch.dtype, beforehand: bool = False
) -> list[Tensor | None]:
    """Return results and gradients, of weighted sums of the results, in double precision; see NAMES.

    dtype: of all but the weights, which stay in single precision where it is bfloat16.
    """
    word_gates, keys, values, hidden, cell, *weights = tensors
    if beforehand:
        values = values @ weights[-2].T
    leaves = [part.to(dtype, copy=True).requires_grad_() for part in (word_gates, keys, values, hidden, cell)]
    exact = torch.promote_types(dtype, torch.float32)
    weights = [part.to(exact, copy=True).requires_grad_() for part in weights]
    given = [None if beforehand and part is weights[-2] else part for part in weights]
    results = unroll(layout, *leaves, StepWeights(*given))
    assert {result.dtype for result in results} == {dtype}
    generator = torch.Generator().manual_seed(1)
    sum((result * torch.randn(result.shape, generator=generator)).sum() for result in results).backward()
    gradients = [leaf.grad for leaf in (*leaves, *weights)]
    return [None if part is None else part.detach().double() for part in (*results, *gradients)]


def assert_near(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float) -> None:
    for name, one, other in zip(NAMES, mine, theirs, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None and other.numel():
            assert float((one - other).norm()) <= tolerance * float(other.norm()), name


@needs_kernel
@pytest.mark.parametrize("beforehand", [False, True])
def test_single_precision_is_that_of_torch(switch: Callable[[bool], None], beforehand: bool) -> None:
    """5 captions of 3 of 4 pictures, 7 x 7 regions: all within 1e-5 of double precision, as torch's own are."""
    lengths = [6, 5, 5, 2, 1]
    layout = CaptionLayout(torch.tensor([2, 0, 2, 3, 2]), active_rows(lengths), 4)
    tensors = inputs(lengths, 4, 49)
    assert kernel_for(*tensors[:3]) is not None
    switch(False)
    exact = run(layout, tensors, torch.float64, beforehand)
    assert_near(run(layout, tensors, torch.float32, beforehand), exact, 1e-5)
    switch(True)
    assert_near(run(layout, tensors, torch.float32, beforehand), exact, 1e-5)


@needs_kernel
@pytest.mark.parametrize("beforehand", [False, True])
def test_bfloat16_is_nearer_than_torch(switch: Callable[[bool], None], beforehand: bool) -> None:
    """It rounds what it keeps, not what it computes: 2 % at most, and less than torch's operations all in all."""
    lengths = [9, 8, 8, 5, 4, 2]
    layout = CaptionLayout(torch.tensor([0, 1, 0, 2, 1, 2]), active_rows(lengths), 3)
    tensors = inputs(lengths, 3, 49)
    switch(False)
    exact = run(layout, tensors, torch.float64, beforehand)
    by_torch = run(layout, tensors, torch.bfloat16, beforehand)
    switch(True)
    mine = run(layout, tensors, torch.bfloat16, beforehand)
    bias = NAMES.index("gate bias")  # a sum that nearly cancels

    mine[bias] = by_torch[bias] = exact[bias] = None
    assert_near(mine, exact, 0.02)

    def error(results: Sequence[Tensor | None]) -> float:
        pairs = zip(results, exact, strict=True)
        return sum(float((a - b).norm() / b.norm()) for a, b in pairs if a is not None and b is not None and b.numel())

    assert error(mine) < error(by_torch)


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=19),
    num_pictures=st.integers(1, 5),
    num_regions=st.integers(1, 20),
    beforehand=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_any_batch_is_that_of_torch(
    lengths: list[int], num_pictures: int, num_regions: int, beforehand: bool, threads: int, seed: int
) -> None:
    """Any number of rows at a step, of captions a picture (none, too), of regions; a batch of one word."""
    lengths = sorted(lengths, reverse=True)
    picture_index = torch.randint(num_pictures, (len(lengths),), generator=torch.Generator().manual_seed(seed))
    layout = CaptionLayout(picture_index, active_rows(lengths), num_pictures)
    tensors = inputs(lengths, num_pictures, num_regions, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTION_RAY_KERNEL", "off")
        theirs = run(layout, tensors, torch.float32, beforehand)
        patch.setenv("CAPTION_RAY_KERNEL", "on")
        with computing_with(threads):
            mine = run(layout, tensors, torch.float32, beforehand)
    for name, one, other in zip(NAMES, mine, theirs, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@needs_kernel
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processors_without_this_ones_instructions(
    processor: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of 16 and of 8 numbers, and products of bfloat16 on CPUs that have none."""
    wanted = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}[processor]
    if wanted not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"no {wanted} here")
    lengths = [5, 4, 4, 4, 4, 4, 4, 4, 3, 1]
    layout = CaptionLayout(torch.tensor([0, 1, 0, 2, 1, 2, 0, 1, 1, 1]), active_rows(lengths), 3)
    tensors = inputs(lengths, 3, 9)
    exact = run(layout, tensors, torch.float64)
    monkeypatch.setattr(compiler, "NATIVE", (f"-march={processor}",))
    compiled.load.cache_clear()
    try:
        mine = run(layout, tensors, dtype)
    finally:
        compiled.load.cache_clear()
    bias = NAMES.index("gate bias")  # a sum that nearly cancels
    mine[bias] = exact[bias] = None
    assert_near(mine, exact, 1e-5 if dtype == torch.float32 else 0.02)


@needs_kernel
@pytest.mark.parametrize("used", [0, 1, 2])
def test_results_that_the_loss_does_not_touch(switch: Callable[[bool], None], used: int) -> None:
    lengths = [4, 2]
    layout = CaptionLayout(torch.tensor([1, 0]), active_rows(lengths), 2)

    def gradients() -> list[Tensor | None]:
        leaves = [part.requires_grad_() for part in inputs(lengths, 2, 5)]
        unroll(layout, *leaves[:5], StepWeights(*leaves[5:]))[used].square().sum().backward()
        return [leaf.grad for leaf in leaves]

    switch(False)
    theirs = gradients()
    switch(True)
    for mine, other in zip(gradients(), theirs, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or other is None or float((mine - other).norm()) <= 1e-5 * float(other.norm())


@needs_kernel
def test_values_of_a_frozen_encoder_get_no_gradient() -> None:
    tensors = inputs([3], 1, 5)
    leaves = [part.requires_grad_() for part in tensors]
    leaves[2] = leaves[2].detach()
    layout = CaptionLayout(torch.tensor([0]), active_rows([3]), 1)
    unroll(layout, *leaves[:5], StepWeights(*leaves[5:]))[0].sum().backward()
    assert leaves[2].grad is None
    assert float(leaves[1].grad.abs().sum()) > 0


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    """The stepper must see a loss or a gradient that is not finite."""
    tensors = [part.to(dtype) for part in inputs([2, 2], 2, 5)]
    tensors[1][0, 0, 0] = torch.nan
    layout = CaptionLayout(torch.tensor([0, 1]), active_rows([2, 2]), 2)
    hidden, _, attention = unroll(layout, *tensors[:5], StepWeights(*tensors[5:]))
    assert hidden[0].isnan().all()
    assert attention[0].isnan().all()
    assert hidden[1].isfinite().all()


@needs_kernel
def test_saturated_attention_stays_finite() -> None:
    """Keys of +-1000 with queries that cancel them not: tanh is +-1, and nothing overflows."""
    tensors = inputs([3, 3], 1, 5)
    tensors[1] = 1000 * tensors[1].sign()
    leaves = [part.requires_grad_() for part in tensors]
    layout = CaptionLayout(torch.tensor([0, 0]), active_rows([3, 3]), 1)
    _, _, attention = unroll(layout, *leaves[:5], StepWeights(*leaves[5:]))
    scores = leaves[1].sign()[0] @ leaves[6]
    torch.testing.assert_close(attention, scores.softmax(0).expand(6, -1))
    attention.square().sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@needs_kernel
@pytest.mark.parametrize("captions_each", [1, 5])
def test_decoder_of_the_original_has_the_same_gradients(switch: Callable[[bool], None], captions_each: int) -> None:
    """The whole decoder, which multiplies values beforehand or afterwards, in single precision."""
    config = ModelConfig(embedding_size=48, hidden_size=64, attention_size=32, dropout=0.0)
    torch.manual_seed(0)
    decoder = Decoder(config, 128, 40)
    lengths = sorted([7, 6, 6, 4, 3, 9, 2, 8, 5, 5], reverse=True)
    features = torch.randn(10 // captions_each, 9, 128)
    ids = torch.randint(4, 40, (10, 10))
    picture_index = torch.arange(10) // captions_each

    def gradients() -> list[Tensor]:
        decoder.zero_grad()
        decoder(features, ids, lengths, picture_index).logits.square().sum().backward()
        return [weight.grad for weight in decoder.parameters() if weight.grad is not None]

    switch(False)
    theirs = gradients()
    switch(True)
    for mine, other in zip(gradients(), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", [False, True])
def test_rows_that_fill_up_a_shape_change_nothing(
    switch: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    """Half precision on a CPU: 9 words in 32 rows give the loss and the gradients of 9 rows, up to rounding."""
    switch(kernel)
    torch.manual_seed(0)
    model = ModelConfig(embedding_size=32, hidden_size=32, attention_size=32, dropout=0.0, deep_output=True)
    decoder = Decoder(model, 64, 40)
    ids, lengths = torch.randint(4, 40, (3, 6)), [5, 3, 1]
    targets = pack_steps(ids[:, 1:], lengths)

    def run(rows: int) -> list[Tensor]:
        monkeypatch.setattr("caption_ray.model.decoder._ROWS", rows)
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = decoder(torch.ones(2, 4, 64), ids, lengths, torch.tensor([0, 1, 0]))
        assert len(result.logits) == -(-9 // rows) * rows
        loss_sum, num_words = caption_loss(result.logits, targets)
        (loss_sum + result.attention_sums.square().sum()).backward()
        gradients = [weight.grad for weight in decoder.parameters() if weight.grad is not None]
        return [loss_sum.detach(), torch.tensor(num_words), result.attention_sums.detach(), *gradients]

    for filled, exact in zip(run(32), run(1), strict=True):
        assert float((filled - exact).double().norm()) <= 0.01 * float(exact.double().norm()) + 1e-6


def test_left_to_torch(switch: Callable[[bool], None]) -> None:
    def kernel(dtype: torch.dtype = torch.float32, gates: int = 128, attention: int = 32) -> ctypes.CDLL | None:
        shapes = [(1, gates), (1, 2, attention), (1, 2, 64)]
        return kernel_for(*(torch.empty(shape, dtype=dtype) for shape in shapes))

    switch(True)
    assert kernel(torch.float64) is None
    assert kernel(torch.float16) is None
    assert kernel(gates=4 * 48) is None
    assert kernel(attention=40) is None
    assert kernel_for(*(torch.empty(1, 128, 32, device="meta") for _ in range(3))) is None
    switch(False)
    assert kernel() is None
