import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.data.batches import CaptionBatch, PictureGroup, PictureRow, batched, collate
from caption_ray.errors import RunError
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoding import beam_search
from caption_ray.text.tokenizer import tokenize
from caption_ray.text.vocabulary import Vocabulary
from caption_ray.train.dev import DevShare, decode_share, gather_result
from caption_ray.train.gradients import NonFiniteLossError
from caption_ray.train.meter import dev_values
from caption_ray.train.steps import dev_loss

CPU = torch.device("cpu")
OPTIONS = DecodeOptions(beam_width=2, max_words=6)
CAPTIONS = {
    "a.jpg": ("A dog runs .", "The red dog"),
    "b.jpg": ("A ball on grass",),
    "c.jpg": ("A dog, on red grass!", "A dog", "A red ball"),
    "d.jpg": ("Dog runs",),
    "e.jpg": ("A ball",),
}
NUM_WORDS = (3 + 3) + 4 + (5 + 2 + 3) + 2 + 2 + 8  # and an <end> for each caption


@pytest.fixture
def model(tiny_vocabulary: Vocabulary) -> CaptionModel:
    """A model of grids of 2x2 regions that drops half of what it knows while it is in training mode, as it is here."""
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=4, hidden_size=7, attention_size=2, dropout=0.5)
    decoder = Decoder(config, num_features=5, vocabulary_size=len(tiny_vocabulary))
    with torch.no_grad():  # some spread between words, so that pictures have captions of their own
        decoder.output.weight.mul_(8.0)
    return CaptionModel(None, decoder).train()


@pytest.fixture
def rows() -> list[PictureRow]:
    generator = np.random.default_rng(0)
    return [
        PictureRow(name=name, picture=(2 * generator.standard_normal((4, 5))).astype("<f2"), captions=captions)
        for name, captions in CAPTIONS.items()
    ]


def collate_rows(rows: list[PictureRow], vocabulary: Vocabulary) -> CaptionBatch:
    return collate(
        [
            PictureGroup(
                picture=row.picture,
                captions=tuple(tuple(vocabulary.encode(tokenize(caption))) for caption in row.captions),
            )
            for row in rows
        ]
    )


def decode(
    model: CaptionModel, rows: list[PictureRow], vocabulary: Vocabulary, size: int, show: frozenset[str] = frozenset()
) -> DevShare:
    batches: Iterator[list[PictureRow]] = batched(rows, size)
    return decode_share(
        model,
        ((some, collate_rows(some, vocabulary)) for some in batches),
        vocabulary=vocabulary,
        options=OPTIONS,
        show=show,
        precision="fp32",
        device=CPU,
    )


@pytest.mark.parametrize("size", [2, 5])
def test_every_picture_is_decoded_once(
    model: CaptionModel, rows: list[PictureRow], tiny_vocabulary: Vocabulary, size: int
) -> None:
    share = decode(model, rows, tiny_vocabulary, size)
    assert share.num_rows == 5
    assert list(share.predicted) == list(share.references) == list(CAPTIONS)
    assert share.references["c.jpg"] == [["a", "dog", "on", "red", "grass"], ["a", "dog"], ["a", "red", "ball"]]
    assert len(set(share.predicted.values())) > 1
    for row in rows:
        with torch.no_grad():
            ((best, *_),) = beam_search(model.decoder, model.features(torch.from_numpy(row.picture[None])), OPTIONS)
        assert share.predicted[row.name] == tuple(tiny_vocabulary.decode(best.ids))


def test_its_loss_is_that_of_one_batch_of_everything(
    model: CaptionModel, rows: list[PictureRow], tiny_vocabulary: Vocabulary
) -> None:
    share = decode(model, rows, tiny_vocabulary, 2)
    batch = collate_rows(rows, tiny_vocabulary)
    loss_sum, num_words = dev_loss(model.eval().decoder, model.features(batch.pictures), batch, "fp32", CPU)
    assert share.num_words == num_words == NUM_WORDS == 32
    assert share.loss_sum == pytest.approx(loss_sum, rel=1e-5)
    assert gather_result(share, tiny_vocabulary, 5).loss == pytest.approx(loss_sum / 32, rel=1e-5)


def test_captions_to_show_are_kept_with_their_attention(
    model: CaptionModel, rows: list[PictureRow], tiny_vocabulary: Vocabulary
) -> None:
    share = decode(model, rows, tiny_vocabulary, 2, show=frozenset({"b.jpg", "e.jpg", "another worker's.jpg"}))
    assert sorted(share.shown) == ["b.jpg", "e.jpg"]
    for name, caption in share.shown.items():
        assert caption.words == share.predicted[name]
        assert caption.attention.shape == (len(caption.words), 2, 2)
        assert caption.attention.sum((1, 2)) == pytest.approx(1, abs=1e-5)
    assert gather_result(share, tiny_vocabulary, 5).shown == share.shown


def test_a_worker_may_have_no_dev_picture(model: CaptionModel, tiny_vocabulary: Vocabulary) -> None:
    assert decode(model, [], tiny_vocabulary, 2) == DevShare()


SHARE = DevShare(
    predicted={"a.jpg": ("a", "dog", "runs"), "b.jpg": ("a", "red", "ball")},
    references={"a.jpg": [["a", "dog", "runs", "on", "grass"]], "b.jpg": [["a", "red", "cat"]]},
    loss_sum=12.5,
    num_words=10,
    num_rows=2,
)


def test_result_by_hand(tiny_vocabulary: Vocabulary) -> None:
    result = gather_result(SHARE, tiny_vocabulary, 2)
    scores = result.scores
    shortness = math.exp(1 - 8 / 6)  # 6 words said where the references have 8
    assert scores.bleu_1 == pytest.approx(shortness * 5 / 6)
    assert scores.bleu_2 == pytest.approx(shortness * math.sqrt(5 / 6 * 3 / 4))
    assert scores.bleu_4 == 0.0  # no four words in a row
    assert scores.num_pictures == 2
    assert (scores.mean_words, scores.mean_reference_words) == (3.0, 4.0)
    assert scores.unknown_share == 1 / 8  # the cat
    assert result.loss == 1.25


@pytest.mark.parametrize(
    ("num_rows", "num_pictures"),
    [(2, 3), (2, 1), (3, 2), (3, 3)],
    ids=["one is missing", "one too many", "one is doubled", "one is doubled and another is missing"],
)
def test_a_missing_doubled_or_foreign_picture_is_an_error(
    tiny_vocabulary: Vocabulary, num_rows: int, num_pictures: int
) -> None:
    message = f"dev: {num_rows} pictures decoded, 2 different ones, of {num_pictures}; the data set has changed"
    with pytest.raises(RunError, match=message):
        gather_result(replace(SHARE, num_rows=num_rows), tiny_vocabulary, num_pictures)


def test_shares_add_up() -> None:
    whole = DevShare()
    whole.add(SHARE)
    whole.add(DevShare(predicted={"c.jpg": ("grass",)}, references={"c.jpg": [["grass"]]}, num_rows=1, num_words=2))
    assert list(whole.predicted) == list(whole.references) == ["a.jpg", "b.jpg", "c.jpg"]
    assert (whole.loss_sum, whole.num_words, whole.num_rows) == (12.5, 12, 3)
    assert list(SHARE.predicted) == ["a.jpg", "b.jpg"]


def test_weights_that_are_lost_lose_the_loss_and_no_worker(
    model: CaptionModel, rows: list[PictureRow], tiny_vocabulary: Vocabulary
) -> None:
    with torch.no_grad():
        model.decoder.output.weight.fill_(torch.nan)
    share = decode(model, rows, tiny_vocabulary, 2, show=frozenset({"b.jpg"}))
    assert share.num_rows == 5
    assert set(share.predicted.values()) == {()}
    with pytest.raises(NonFiniteLossError, match="dev loss is not finite"):
        dev_values(gather_result(share, tiny_vocabulary, 5))
