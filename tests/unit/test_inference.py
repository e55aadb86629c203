import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from caption_ray.bundle import BundleConfig, build_model, load_bundle, save_bundle
from caption_ray.config import DecodeOptions, EncoderConfig, ModelConfig
from caption_ray.data.batches import stack_pictures
from caption_ray.device import resolve_precision
from caption_ray.errors import BundleError, PictureError
from caption_ray.inference import Captioner, to_captions
from caption_ray.model.decoding import Hypothesis
from caption_ray.text.vocabulary import Vocabulary

SIZES = {"wide": (90, 40), "tall": (31, 77), "square": (64, 64)}


def picture(name: str) -> bytes:
    width, height = SIZES[name]
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def captioner(tiny_bundle: Path) -> Captioner:
    return Captioner.load(str(tiny_bundle), torch.device("cpu"))


def test_bytes_in_captions_out(captioner: Captioner, tiny_vocabulary: Vocabulary) -> None:
    answers = captioner.caption([captioner.decode_picture(picture(name)) for name in SIZES])
    assert len(answers) == 3
    for captions in answers:
        assert 1 <= len(captions) <= 4
        assert [c.log_probability for c in captions] == sorted((c.log_probability for c in captions), reverse=True)
        for caption in captions:
            assert 1 <= len(caption.words) <= 6
            assert set(caption.words) <= set(tiny_vocabulary.words[4:])
            assert caption.text.split() == list(caption.words)
            assert caption.log_probability < 0
            assert caption.attention.shape == (len(caption.words), 2, 2)
            assert caption.attention.sum((1, 2)) == pytest.approx(np.ones(len(caption.words)), abs=1e-5)


def test_options_of_a_call_outrank_the_bundles(captioner: Captioner) -> None:
    (captions,) = captioner.caption(
        [captioner.decode_picture(picture("wide"))], DecodeOptions(beam_width=1, max_words=1)
    )
    assert [len(caption.words) for caption in captions] == [1]


def test_weights_without_numbers_are_named_and_the_bundle_stays_as_it_is(tiny_bundle: Path) -> None:
    bundle = load_bundle(str(tiny_bundle))
    captioner = Captioner(bundle, torch.device("cpu"))
    square = captioner.decode_picture(picture("wide"))
    before = captioner.caption([square])[0][0].text
    for weight in bundle.model.parameters():
        weight.data.fill_(torch.nan)
    assert captioner.caption([square])[0][0].text == before  # it has a copy
    with pytest.raises(BundleError, match="the weights are spoilt"):
        Captioner(bundle, torch.device("cpu")).caption([square])
    with pytest.raises(BundleError, match="the weights are spoilt"):
        next(Captioner(bundle, torch.device("cpu")).stream(square, 6))


def test_no_pictures_no_captions(captioner: Captioner) -> None:
    assert captioner.caption([]) == []


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("max_words", [2, 6])
def test_stream_equals_beam_width_1(captioner: Captioner, name: str, max_words: int) -> None:
    decoded = captioner.decode_picture(picture(name))
    ((expected,),) = captioner.caption([decoded], DecodeOptions(beam_width=1, max_words=max_words))
    streamed = list(captioner.stream(decoded, max_words))
    assert tuple(word for word, _, _ in streamed) == expected.words
    assert all(log_probability < 0 for _, log_probability, _ in streamed)
    # What is missing is the log-probability of the end, which the whole caption has.
    assert sum(log_probability for _, log_probability, _ in streamed) >= expected.log_probability - 1e-5
    for (_, _, attention), seen in zip(streamed, expected.attention, strict=True):
        assert attention.tolist() == pytest.approx(seen.flatten().tolist(), abs=1e-5)


def test_stream_returns_the_whole_caption(captioner: Captioner) -> None:
    decoded = captioner.decode_picture(picture("wide"))
    ((expected,),) = captioner.caption([decoded], DecodeOptions(beam_width=1, max_words=6))
    stream = captioner.stream(decoded, 6)
    for _ in expected.words:
        next(stream)
    with pytest.raises(StopIteration) as end:
        next(stream)
    whole = end.value.value
    assert whole.words == expected.words
    assert whole.log_probability == pytest.approx(expected.log_probability, abs=1e-5)
    assert whole.attention == pytest.approx(expected.attention, abs=1e-5)


def test_each_picture_is_searched_for_as_it_asks(captioner: Captioner) -> None:
    pictures = [captioner.decode_picture(picture(name)) for name in ("wide", "tall", "square", "wide")]
    options = [DecodeOptions(beam_width=width, max_words=6) for width in (1, 3, 1, 2)]
    together = captioner.caption_each(pictures, options)
    for square, asked, found in zip(pictures, options, together, strict=True):
        (alone,) = captioner.caption([square], asked)
        assert [caption.words for caption in found] == [caption.words for caption in alone]
        assert [c.log_probability for c in found] == pytest.approx([c.log_probability for c in alone], abs=1e-4)


def test_folding_and_fusing_change_rounding_only(captioner: Captioner, tiny_bundle: Path) -> None:
    pictures = [captioner.decode_picture(picture(name)) for name in SIZES] * 3  # more than go through together
    bundle = load_bundle(str(tiny_bundle))
    with torch.no_grad():
        plain = bundle.model.features(stack_pictures(pictures))
        folded = captioner._encode(pictures)
    assert float((folded - plain).norm() / plain.norm()) < 1e-5


def test_bf16_is_for_encoders_that_bear_it(tiny_vocabulary: Vocabulary, tiny_bundle: Path, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert Captioner.load(str(tiny_bundle), cpu, "auto").precision == "fp32"  # MobileNetV2
    config = BundleConfig(
        encoder=EncoderConfig(backbone="resnet18", weights="none", image_size=64),
        model=ModelConfig(embedding_size=3, hidden_size=5, attention_size=2),
        decode=DecodeOptions(beam_width=1, max_words=6),
        num_features=512,
        vocabulary_size=len(tiny_vocabulary),
    )
    model = build_model(config)
    save_bundle(
        str(tmp_path), name="r", data_digest="", config=config, vocabulary=tiny_vocabulary, model=model, metrics={}
    )
    captioner = Captioner.load(str(tmp_path), cpu, "auto")
    assert captioner.precision == resolve_precision("auto", cpu)
    pictures = [captioner.decode_picture(picture("square"))]
    with torch.no_grad():
        exact = model.eval().features(stack_pictures(pictures))
    rounded = captioner._encode(pictures)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.02


def test_broken_picture(captioner: Captioner) -> None:
    with pytest.raises(PictureError, match="the file is empty"):
        captioner.decode_picture(b"")


def test_attention_is_laid_out_row_by_row(tiny_vocabulary: Vocabulary) -> None:
    hypothesis = Hypothesis(
        ids=(5, 6),
        log_probability=-1.0,
        score=-1.0,
        attention=torch.tensor([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]]),
    )
    (caption,) = to_captions([hypothesis], tiny_vocabulary)
    assert caption.text == "dog runs"
    assert caption.attention[0] == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert caption.attention[1] == pytest.approx(np.array([[1, 0], [0, 0]]))
