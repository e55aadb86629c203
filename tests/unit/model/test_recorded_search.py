"""The search that asks nothing of the host finds what `beam_search` finds; on a GPU also as a recording."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoding import Hypothesis, beam_search
from caption_ray.model.recorded_search import FixedSearch, RecordedSearch
from caption_ray.special_ids import END_ID

R, F, V = 3, 7, 12
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def build_decoder(seed: int, end_bias: float = 1.0) -> Decoder:
    torch.manual_seed(seed)
    config = ModelConfig(embedding_size=3, hidden_size=5, attention_size=2)
    decoder = Decoder(config, num_features=F, vocabulary_size=V).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3.0)  # far from uniform, so that pictures get captions of their own
        decoder.output.bias[END_ID] = end_bias
    return decoder


def fixed(decoder: Decoder, room: int, features: Tensor, options: DecodeOptions) -> list[list[Hypothesis]]:
    with torch.no_grad():
        search = FixedSearch(decoder, torch.zeros(room, R, F), options)
        search.run(torch.randn(room, R, F), search.begin, search.go_on)  # what it leaves behind must not matter
        return search.run(features, search.begin, search.go_on)


def check_equal(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [h.ids for h in mine] == [h.ids for h in theirs]
        assert [h.score for h in mine] == pytest.approx([h.score for h in theirs], abs=1e-4)
        assert [h.log_probability for h in mine] == pytest.approx([h.log_probability for h in theirs], abs=1e-4)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.attention, other.attention, atol=1e-5, rtol=1e-4)


@settings(derandomize=True, deadline=None)  # else a near tie turns up some day
@given(
    seed=st.integers(0, 10_000),
    end_bias=st.sampled_from([-3.0, 1.0, 4.0]),
    width=st.integers(1, 6),
    max_words=st.integers(1, 8),
    length_penalty=st.sampled_from([0.0, 0.7, 1.0]),
    num_pictures=st.integers(1, 4),
)
def test_finds_what_beam_search_finds(
    seed: int, end_bias: float, width: int, max_words: int, length_penalty: float, num_pictures: int
) -> None:
    decoder, features = build_decoder(seed, end_bias), torch.randn(num_pictures, R, F)
    options = DecodeOptions(beam_width=width, max_words=max_words, length_penalty=length_penalty)
    check_equal(fixed(decoder, 4, features, options), beam_search(decoder, features, options))


def test_spoilt_weights_find_nothing() -> None:
    decoder, features = build_decoder(0), torch.randn(2, R, F)
    decoder.output.bias.fill_(torch.nan)
    options = DecodeOptions(beam_width=2, max_words=4)
    assert fixed(decoder, 2, features, options) == beam_search(decoder, features, options) == [[], []]


def test_cpu_searches_as_ever() -> None:
    decoder, features = build_decoder(3), torch.randn(70, R, F)
    options = DecodeOptions(beam_width=2, max_words=4)
    search = RecordedSearch(decoder, V, torch.device("cpu"))
    check_equal(search(features, options), beam_search(decoder, features, options))
    assert search(features[:0], options) == []


@needs_gpu
@pytest.mark.parametrize("num_pictures", [1, 3, 70])
def test_recording_finds_what_beam_search_finds(num_pictures: int) -> None:
    device = torch.device("cuda")
    decoder = build_decoder(5).to(device)
    search = RecordedSearch(decoder, V, device)
    for width in (1, 3):
        options = DecodeOptions(beam_width=width, max_words=7)
        for seed in range(3):  # recorded once, and launched again on other features
            features = torch.randn(num_pictures, R, F, generator=torch.Generator().manual_seed(seed)).to(device)
            check_equal(search(features, options), beam_search(decoder, features, options))
