"""The compiled parts of a step against torch's, and what they must leave to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import computing_with
from torch import Tensor

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.model import compiled
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoder_state import distinct
from caption_ray.model.decoding import beam_search
from caption_ray.model.fused_step import advance, key_powers, look, step_kernel

needs_kernel = pytest.mark.skipif(compiled.load() is None, reason="no gcc, or torch without GNU OpenMP")


@torch.no_grad()
def attend(query: Tensor, keys: Tensor, values: Tensor, picture_of: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    kernel = step_kernel(keys, values)
    assert kernel is not None
    return look(kernel, query, key_powers(kernel, keys), values, picture_of, score)


def by_torch(query: Tensor, keys: Tensor, values: Tensor, picture_of: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Bahdanau et al. 2015, eq. 4 to 6, in double precision."""
    energy = torch.tanh(keys.double()[picture_of] + query.double().unsqueeze(1))
    weights = torch.softmax(energy @ score.double(), dim=-1)
    return weights, (weights.unsqueeze(1) @ values.double()[picture_of]).squeeze(1)


@needs_kernel
def test_two_regions_by_hand() -> None:
    # tanh(0) = 0 and tanh(ln 3 / 2) = 1 / 2, scaled by 2 ln 3: scores 0 and ln 3. 31 more sizes count for nothing.
    ln3 = torch.tensor(3.0).log()
    keys, values, score = torch.zeros(1, 2, 32), torch.zeros(1, 2, 32), torch.zeros(32)
    keys[0, 1, 0], score[0], values[0, :, 5] = ln3 / 2, 2 * ln3, torch.tensor([4.0, 8.0])
    weights, averages = attend(torch.zeros(1, 32), keys, values, torch.tensor([0]), score)
    assert weights.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert averages[0, 4:7].tolist() == pytest.approx([0.0, 7.0, 0.0])


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    pictures=st.integers(1, 4),
    rows=st.integers(0, 9),
    regions=st.integers(1, 50),
    size=st.sampled_from([32, 64, 160]),
    scale=st.sampled_from([0.1, 1.0, 9.0]),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_attention_is_torchs(
    pictures: int, rows: int, regions: int, size: int, scale: float, threads: int, seed: int
) -> None:
    """Of keys and queries up to 43, beyond which they are cut."""
    generator = torch.Generator().manual_seed(seed)
    given = (
        scale * torch.randn(rows, size, generator=generator),
        scale * torch.randn(pictures, regions, size, generator=generator),
        torch.randn(pictures, regions, 96, generator=generator),
        torch.randint(pictures, (rows,), generator=generator),
        torch.randn(size, generator=generator),
    )
    with computing_with(threads):
        found = attend(*given)
    for mine, theirs in zip(found, by_torch(*given), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@needs_kernel
def test_tensors_that_are_apart_in_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(6, 64, generator=generator)
    keys, values = (torch.randn(2, 32, 5, generator=generator).mT for _ in range(2))
    given = (both[:, :32], keys, values, torch.arange(12)[::2] % 2, both[0, ::2])
    for mine, theirs in zip(attend(*given), by_torch(*given), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), shared=st.booleans(), seed=st.integers(0, 99))
def test_the_cell_is_torchs(rows: int, shared: bool, seed: int) -> None:
    """nn.LSTMCell's, whose input and state are multiplied by 1; rows of gates their own, or shared by some."""
    generator = torch.Generator().manual_seed(seed)
    state_gates, word_gates = (4 * torch.randn(max(1, rows), 128, generator=generator) for _ in range(2))
    cell = torch.randn(rows, 32, generator=generator)
    state_of = torch.randint(max(1, rows), (rows,), generator=generator) if shared else None
    word_of = None if state_of is None else state_of.flip(0)
    with torch.no_grad():
        kernel = step_kernel(torch.zeros(1, 1, 32), torch.zeros(1, 1, 32))
    assert kernel is not None
    hidden, after = advance(kernel, state_gates, state_of, word_gates, word_of, cell)

    gates = state_gates[:rows] + word_gates[:rows] if state_of is None else state_gates[state_of] + word_gates[word_of]
    enter, forget, candidate, leave = gates.double().chunk(4, dim=1)
    expected = forget.sigmoid() * cell.double() + enter.sigmoid() * candidate.tanh()
    torch.testing.assert_close(after.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.double(), leave.sigmoid() * expected.tanh(), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_rows_of_nothing_are_an_error() -> None:
    keys = torch.zeros(2, 3, 32)
    with torch.no_grad():
        kernel = step_kernel(keys, keys)
    assert kernel is not None
    for number in (-1, 2):
        with pytest.raises(IndexError, match="none of the 2 pictures"):
            look(kernel, torch.zeros(1, 32), keys, keys, torch.tensor([number]), torch.zeros(32))
        with pytest.raises(IndexError, match="none of the 2 rows"):
            advance(kernel, torch.zeros(2, 128), torch.tensor([number]), torch.zeros(2, 128), None, torch.zeros(1, 32))


def test_distinct_numbers_by_hand() -> None:
    place, which = distinct(torch.tensor([2, 2, 7, 5]))
    assert place.tolist() in ([0, 3, 2], [1, 3, 2])
    assert which.tolist() == [0, 0, 2, 1]


@needs_kernel
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("deep_output", [False, True])
def test_a_search_finds_what_it_finds_by_torch(monkeypatch: pytest.MonkeyPatch, width: int, deep_output: bool) -> None:
    """9 pictures whose beams share states, and which are done at different times: captions, log p and attention."""
    torch.manual_seed(0)
    decoder = Decoder(
        ModelConfig(embedding_size=32, hidden_size=64, attention_size=32, deep_output=deep_output), 64, 30
    ).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3)  # so that captions differ
    features = torch.randn(9, 6, 64)
    options = DecodeOptions(beam_width=width, max_words=12)
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
    theirs = beam_search(decoder, features, options)
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "auto")
    mine = beam_search(decoder, features, options)
    assert len({beam[0].ids for beam in theirs}) > 3
    assert len({len(beam[0].ids) for beam in theirs}) > 1
    for one, other in zip(mine, theirs, strict=True):
        assert [found.ids for found in one] == [found.ids for found in other]
        for left, right in zip(one, other, strict=True):
            assert left.log_probability == pytest.approx(right.log_probability, abs=1e-4)
            torch.testing.assert_close(left.attention, right.attention, rtol=1e-3, atol=1e-4)


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(dtype: torch.dtype = torch.float32, size: int = 32, value: int = 32) -> bool:
        with torch.no_grad():
            return step_kernel(torch.zeros(1, 5, size, dtype=dtype), torch.zeros(1, 5, value, dtype=dtype)) is not None

    assert not found(torch.float64)
    assert not found(torch.bfloat16)
    assert not found(size=40)
    assert not found(value=40)
    assert step_kernel(torch.zeros(1, 5, 32, requires_grad=True), torch.zeros(1, 5, 32)) is None
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
    assert not found()
