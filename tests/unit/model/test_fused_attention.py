"""The compiled attention against torch's, and what it must leave to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.fused_attention import attention_weights

needs_kernel = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")


def by_torch(query: Tensor, keys: Tensor, score: Tensor) -> Tensor:
    """Bahdanau et al. 2015, eq. 6, in double precision."""
    energy = torch.tanh(keys.double().unsqueeze(1) + query.double().unsqueeze(2))
    return torch.softmax(energy @ score.double(), dim=-1)


@needs_kernel
def test_two_regions_by_hand() -> None:
    # tanh(0) = 0 and tanh(ln 3 / 2) = 1 / 2, scaled by 2 ln 3: scores 0 and ln 3. 31 more sizes count for nothing.
    ln3 = torch.tensor(3.0).log()
    keys, score = torch.zeros(1, 2, 32), torch.zeros(32)
    keys[0, 1, 0], score[0] = ln3 / 2, 2 * ln3
    weights = attention_weights(torch.zeros(1, 1, 32), keys, score)
    assert weights is not None
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.75])


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    pictures=st.integers(0, 4),
    rows=st.integers(1, 6),
    regions=st.integers(1, 50),
    size=st.sampled_from([32, 64, 160]),
    scale=st.sampled_from([0.1, 1.0, 9.0]),
    seed=st.integers(0, 99),
)
def test_it_is_torchs(pictures: int, rows: int, regions: int, size: int, scale: float, seed: int) -> None:
    """Of keys and queries up to 43, beyond which they are cut."""
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(pictures, rows, size, generator=generator)
    keys = scale * torch.randn(pictures, regions, size, generator=generator)
    score = torch.randn(size, generator=generator)
    weights = attention_weights(query, keys, score)
    assert weights is not None
    torch.testing.assert_close(weights.double(), by_torch(query, keys, score), rtol=1e-4, atol=1e-6)


@needs_kernel
def test_rows_that_are_apart_in_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 3, 64, generator=generator)
    query, keys, score = both[:, :, :32], torch.randn(2, 32, 5, generator=generator).mT, both[0, 0, ::2]
    weights = attention_weights(query, keys, score)
    assert weights is not None
    torch.testing.assert_close(weights.double(), by_torch(query, keys, score), rtol=1e-4, atol=1e-6)


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(dtype: torch.dtype = torch.float32, regions: int = 5, size: int = 32) -> Tensor | None:
        query, keys, score = (torch.zeros(*shape, dtype=dtype) for shape in ((1, 1, size), (1, regions, size), (size,)))
        return attention_weights(query, keys, score)

    assert found(torch.float64) is None
    assert found(torch.float16) is None
    assert found(size=40) is None
    assert found(regions=2**13) is None
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
    assert found() is None
