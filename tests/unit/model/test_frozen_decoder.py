"""A decoder laid out once finds what the decoder itself finds; with rounded products, nearly the same."""

import pytest
import torch
from torch import Tensor

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.model import compiled, frozen_decoder
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoding import Hypothesis, StepDecoder, beam_search
from caption_ray.model.frozen_decoder import FrozenDecoder

BF16 = compiled.load("BFLOAT16")
needs_kernel = pytest.mark.skipif(BF16 is None, reason="no gcc, or torch without GNU OpenMP")
OPTIONS = DecodeOptions(beam_width=3, max_words=12)


def build(deep_output: bool = False, feature_size: int | None = None) -> tuple[Decoder, Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(
        embedding_size=32, hidden_size=64, attention_size=32, deep_output=deep_output, feature_size=feature_size
    )
    decoder = Decoder(config, 64, 30).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3)  # so that captions differ
    return decoder, torch.randn(9, 6, 64)


def all_of(decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
    return [found for beam in beam_search(decoder, features, OPTIONS) for found in beam]


@pytest.mark.parametrize("kernel", [pytest.param("auto", marks=needs_kernel), "off"])
@pytest.mark.parametrize("deep_output", [False, True])
def test_it_finds_what_the_decoder_finds(monkeypatch: pytest.MonkeyPatch, kernel: str, deep_output: bool) -> None:
    monkeypatch.setenv("CAPTION_RAY_KERNEL", kernel)
    decoder, features = build(deep_output)
    mine, theirs = all_of(FrozenDecoder(decoder), features), all_of(decoder, features)
    assert len({found.ids for found in theirs}) > 9
    assert [found.ids for found in mine] == [found.ids for found in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        torch.testing.assert_close(one.attention, other.attention, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def score(decoder: Decoder, features: Tensor, found: Hypothesis) -> tuple[float, Tensor]:
    """The log-probability of a caption's words, and attention, word by word by the decoder itself."""
    context, state = decoder.start(features)
    ids, total, attended = 1, 0.0, []
    for word in found.ids:
        logits, state, attention = decoder.step(torch.tensor([ids]), state, context)
        total += float(torch.log_softmax(logits, -1)[0, word])
        attended.append(attention[0])
        ids = word
    return total, torch.stack(attended)


@needs_kernel
@pytest.mark.parametrize("feature_size", [None, 32])
@pytest.mark.parametrize("deep_output", [False, True])
def test_rounded_it_gives_captions_nearly_the_decoders_probability(
    monkeypatch: pytest.MonkeyPatch, deep_output: bool, feature_size: int | None
) -> None:
    monkeypatch.setattr(frozen_decoder, "product_kernel", lambda *_: BF16)  # also where it does not pay
    decoder, features = build(deep_output, feature_size)
    rounded = FrozenDecoder(decoder, rounded=True)
    context, _ = rounded.start(features)
    assert context.products is not None
    assert (context.products.context is None) is not deep_output
    with torch.no_grad():
        for hidden in torch.randn(5, 64):  # that products are rounded at all
            assert not context.products.hidden(hidden[None]).equal(decoder.step_products().hidden(hidden[None]))
    differences = []
    for picture in range(len(features)):
        alone = features[picture : picture + 1]
        for found in beam_search(rounded, alone, DecodeOptions(beam_width=3, max_words=5))[0]:
            if len(found.ids) < 5:  # its log-probability counts the end too
                continue
            total, attended = score(decoder, alone, found)
            differences.append(abs(found.log_probability - total))
            assert float((found.attention - attended).abs().max()) < 0.05
    assert len(differences) > 5
    assert max(differences) < 0.1
    assert sum(differences) / len(differences) < 0.03


def test_rounding_is_left_where_no_code_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_RAY_KERNEL", "off")
    decoder, features = build()
    for one, other in zip(
        all_of(FrozenDecoder(decoder, rounded=True), features), all_of(decoder, features), strict=True
    ):
        assert one.ids == other.ids
