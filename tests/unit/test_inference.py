import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from caption_ray.config import DecodeOptions
from caption_ray.errors import PictureError
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
    # What is missing is the log-probability of the end.
    assert sum(log_probability for _, log_probability, _ in streamed) >= expected.log_probability - 1e-5
    for (_, _, attention), seen in zip(streamed, expected.attention, strict=True):
        assert attention.tolist() == pytest.approx(seen.flatten().tolist(), abs=1e-5)


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
