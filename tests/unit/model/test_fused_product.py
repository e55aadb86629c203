"""Products with rounded factors against torch's in double precision, and what they must leave to it."""

import shutil
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import computing_with
from torch import Tensor

from caption_ray.model import compiled, compiler
from caption_ray.model.fused_product import RoundedProduct, product_kernel

needs_kernel = pytest.mark.skipif(compiled.load("BFLOAT16") is None, reason="no gcc, or torch without GNU OpenMP")


def product_of(weight: Tensor, bias: Tensor | None = None) -> RoundedProduct:
    """Also where it does not pay, so that it is right everywhere."""
    kernel = compiled.load("BFLOAT16")
    assert kernel is not None
    return RoundedProduct(kernel, weight, bias)


@needs_kernel
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to ask")
def test_it_is_for_cpus_with_amx() -> None:
    command = ["gcc", "-march=native", "-dM", "-E", "-x", "c", "/dev/null"]
    knows = b"__AMX_BF16__" in subprocess.run(command, capture_output=True, check=True).stdout
    with torch.no_grad():
        found = product_kernel(torch.zeros(7, 40))
    assert (found is not None) is (knows and compiler.may_use_tiles() and b" amx_bf16" in compiler.cpu_flags())


@needs_kernel
def test_two_outputs_by_hand() -> None:
    # 1 + 2^-8 has nine bits after the first: it rounds to 1, to even, and 1 + 3 * 2^-8 to 1 + 2^-6.
    weight, inputs = torch.zeros(2, 32), torch.zeros(1, 32)
    weight[0, 3], weight[1, 31] = 1 + 2**-8, 1 + 3 * 2**-8
    inputs[0, 3], inputs[0, 31] = 5, 64
    product = product_of(weight, torch.tensor([0.25, -1.0]))
    assert product(inputs).tolist() == [[5.25, 64.0]]


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 150),
    inputs=st.sampled_from([1, 20, 32, 64, 160]),
    outputs=st.integers(1, 100),
    biased=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_sums_of_rounded_factors_are_exact(
    rows: int, inputs: int, outputs: int, biased: bool, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    given, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    with computing_with(threads):
        mine = product_of(weight, bias)(given)
    expected = given.bfloat16().double() @ weight.bfloat16().double().T
    if bias is not None:
        expected += bias.double()
    torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-4)


@needs_kernel
def test_leading_dimensions_and_gaps_between_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, wide = torch.randn(40, 64, generator=generator), torch.randn(2, 3, 128, generator=generator)
    product = product_of(weight)
    mine = product(wide[..., ::2])
    assert mine.shape == (2, 3, 40)
    assert mine[1, 2].equal(product(wide[1:, 2:, ::2])[0, 0])
    assert product(torch.zeros(0, 3, 64)).shape == (0, 3, 40)


@needs_kernel
def test_weights_that_change_later_are_not_followed() -> None:
    weight, bias = torch.ones(32, 32), torch.zeros(32)
    product = product_of(weight, bias)
    weight.zero_()
    bias.fill_(1)
    assert product(torch.ones(1, 32)).tolist() == [[32.0] * 32]


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert product_kernel(torch.zeros(7, 32, dtype=torch.float64)) is None
        monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
        assert product_kernel(torch.zeros(7, 32)) is None
    monkeypatch.delenv("CAPTION_RAY_KERNEL")
    assert product_kernel(torch.zeros(7, 32, requires_grad=True)) is None
