import math
from collections.abc import Mapping, Sequence
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoder_state import DecoderState, PictureContext
from caption_ray.model.decoding import Hypothesis, beam_search, greedy_steps, rank_score
from caption_ray.special_ids import END_ID, START_ID, UNKNOWN_ID

A, B, C, D = 4, 5, 6, 7
Tree = Mapping[tuple[int, ...], Mapping[int, float]]
"""For each words so far, the probabilities of the next word."""


class TreeDecoder:
    """A decoder that reads its probabilities from trees, one a picture; the state is the words so far.

    A picture's features hold the number of its tree; a prefix that is not in the tree ends.
    """

    def __init__(self, trees: Sequence[Tree], num_regions: int = 3) -> None:
        self.trees = trees
        self.num_regions = num_regions

    def start(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        keys = torch.zeros(len(features), self.num_regions, 1)
        return PictureContext(keys, keys), DecoderState(features[:, 0, :1], torch.zeros(len(features), 0))

    def step(self, ids: Tensor, state: DecoderState, context: PictureContext) -> tuple[Tensor, DecoderState, Tensor]:
        words = torch.cat((state.cell, ids[:, None].float()), dim=1)
        logits = torch.full((len(ids), 8), -torch.inf)
        for row, (tree, prefix) in enumerate(zip(state.hidden[:, 0].int().tolist(), words.int().tolist(), strict=True)):
            for word, probability in self.trees[tree].get(tuple(prefix[1:]), {END_ID: 1.0}).items():
                logits[row, word] = math.log(probability)
        attention = torch.full((len(ids), self.num_regions), 1 / self.num_regions)
        return logits, DecoderState(state.hidden, words), attention


def search(trees: Sequence[Tree], **options: float) -> list[list[Hypothesis]]:
    numbers = torch.arange(len(trees)).float().view(-1, 1, 1)
    return beam_search(TreeDecoder(trees), numbers, DecodeOptions(**options))  # type: ignore[arg-type]


# Greedy goes for A: 0.5 * 0.4 = 0.20. The best caption is B D: 0.4 * 0.9 = 0.36.
GARDEN_PATH: Tree = {(): {A: 0.5, B: 0.4, C: 0.1}, (A,): {C: 0.4, D: 0.3, B: 0.3}, (B,): {D: 0.9, A: 0.1}}


def test_no_picture_no_caption() -> None:
    assert search([]) == []


def test_beam_finds_what_greedy_misses() -> None:
    (greedy,) = search([GARDEN_PATH], beam_width=1)
    (beam,) = search([GARDEN_PATH], beam_width=2)
    assert greedy[0].ids == (A, C)
    assert greedy[0].log_probability == pytest.approx(math.log(0.20))
    assert beam[0].ids == (B, D)
    assert beam[0].log_probability == pytest.approx(math.log(0.36))
    assert [hypothesis.ids for hypothesis in beam[1:]] == [(A, C)]
    assert beam[0].attention.shape == (2, 3)


def test_length_penalty_by_hand() -> None:
    # "A": 0.4, two tokens with <end>; "A B": 0.6 * 0.6 = 0.36, three.
    tree: Tree = {(): {A: 1.0}, (A,): {END_ID: 0.4, B: 0.6}, (A, B): {END_ID: 0.6, C: 0.4}}
    plain, rewarded = (search([tree], beam_width=2, length_penalty=p)[0] for p in (0.0, 1.0))
    assert [hypothesis.ids for hypothesis in plain] == [(A,), (A, B)]
    assert [hypothesis.ids for hypothesis in rewarded] == [(A, B), (A,)]
    assert rewarded[0].score == pytest.approx(math.log(0.36) / 3)
    assert rewarded[1].score == pytest.approx(math.log(0.4) / 2)
    assert rewarded[0].log_probability == pytest.approx(math.log(0.36))
    assert rank_score(-6.0, 4, 0.5) == pytest.approx(-3.0)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_markers_and_unknown_are_never_written(width: int) -> None:
    # <pad>, <start> and <unk> are likelier than any word, and <end> is the likeliest of all at first.
    tree: Tree = {
        (): {END_ID: 0.6, 0: 0.1, 1: 0.1, 3: 0.1, A: 0.06, B: 0.04},
        (A,): {0: 0.3, 1: 0.3, 3: 0.3, END_ID: 0.1},
        (B,): {3: 0.9, C: 0.1},
    }
    (found,) = search([tree], beam_width=width)
    assert found[0].ids == (A,)
    assert found[0].log_probability == pytest.approx(math.log(0.06 * 0.1))
    assert all(word >= A for hypothesis in found for word in hypothesis.ids)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_there_is_an_answer_though_nothing_ends(width: int) -> None:
    endless: Tree = {prefix: {A: 0.75, B: 0.25} for length in range(5) for prefix in product((A, B), repeat=length)}
    (found,) = search([endless], beam_width=width, max_words=5)
    assert found[0].ids == (A,) * 5
    assert found[0].log_probability == pytest.approx(5 * math.log(0.75))
    assert found[0].attention.shape == (5, 3)


def test_what_ends_counts_more_than_what_is_cut() -> None:
    # "A C", cut at two words, has 0.9 of the probability; "B", which ends, has 0.1.
    tree: Tree = {(): {A: 0.9, B: 0.1}, (A,): {C: 1.0}, (A, C): {D: 1.0}, (B,): {END_ID: 1.0}}
    (found,) = search([tree], beam_width=2, max_words=2)
    assert [hypothesis.ids for hypothesis in found] == [(B,)]
    assert found[0].log_probability == pytest.approx(math.log(0.1))


probabilities = st.lists(st.integers(1, 1000), min_size=3, max_size=3)


@given(st.lists(probabilities, min_size=7, max_size=7))
def test_wide_beam_equals_exhaustive_search(table: list[list[int]]) -> None:
    prefixes = [prefix for length in range(3) for prefix in product((A, B), repeat=length)]
    tree: Tree = {
        prefix: {word: count / sum(row) for word, count in zip((A, B, END_ID), row, strict=True)}
        for prefix, row in zip(prefixes, table, strict=True)
    }
    expected = {
        words: math.prod(tree[words[:t]][word] for t, word in enumerate((*words, END_ID)))
        for words in prefixes
        if words
    }
    (found,) = search([tree], beam_width=20, max_words=3)
    assert {h.ids: h.log_probability for h in found} == pytest.approx(
        {words: math.log(p) for words, p in expected.items()}, abs=1e-5
    )
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


PLAIN = ModelConfig(embedding_size=3, hidden_size=5, attention_size=2)
DECODERS = {
    "plain": PLAIN,
    "tied": ModelConfig(embedding_size=5, hidden_size=5, attention_size=2, tie_embeddings=True),
    "deep": ModelConfig(embedding_size=3, hidden_size=5, attention_size=2, deep_output=True, feature_size=4),
}


def build_decoder(seed: int, config: ModelConfig = PLAIN) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(config, num_features=7, vocabulary_size=11).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3.0)  # far from uniform, so that pictures get captions of their own
        decoder.output.bias[END_ID] = 1.0
    return decoder


def greedy_words(decoder: Decoder, features: Tensor, max_words: int) -> list[tuple[tuple[int, ...], float]]:
    steps = list(greedy_steps(decoder, features, max_words))
    found = []
    for picture in range(len(features)):
        ids = [int(step.ids[picture]) for step in steps]
        total = sum(float(step.log_probability[picture]) for step in steps)
        found.append((tuple(word for word in ids if word > END_ID), total))
    return found


@settings(derandomize=True)  # else a near tie turns up some day
@given(st.integers(0, 10_000))
def test_width_1_equals_greedy(seed: int) -> None:
    decoder, features = build_decoder(seed), torch.randn(4, 3, 7)
    beams = beam_search(decoder, features, DecodeOptions(beam_width=1, max_words=6))
    for (ids, log_probability), hypotheses in zip(greedy_words(decoder, features, 6), beams, strict=True):
        assert [hypothesis.ids for hypothesis in hypotheses] == [ids]
        assert hypotheses[0].log_probability == pytest.approx(log_probability, abs=1e-4)


def test_greedy_goes_on_quietly_after_a_pictures_end() -> None:
    short: Tree = {(): {A: 1.0}, (A,): {END_ID: 1.0}}
    long: Tree = {(): {B: 1.0}, (B,): {C: 0.5, D: 0.3, END_ID: 0.2}, (B, C): {D: 1.0}}
    features = torch.tensor([0.0, 1.0]).view(-1, 1, 1)
    steps = list(greedy_steps(TreeDecoder([short, long]), features, max_words=9))
    assert [step.ids.tolist() for step in steps] == [[A, B], [END_ID, C], [0, D], [0, END_ID]]
    assert [float(step.log_probability[1]) for step in steps] == pytest.approx([0, math.log(0.5), 0, 0])
    assert [float(step.log_probability[0]) for step in steps] == pytest.approx([0, 0, 0, 0])


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
def test_other_pictures_of_the_batch_do_not_matter(length_penalty: float) -> None:
    decoder, features = build_decoder(5), torch.randn(6, 3, 7, generator=torch.Generator().manual_seed(1))
    options = DecodeOptions(beam_width=3, max_words=7, length_penalty=length_penalty)
    together = beam_search(decoder, features, options)
    assert len({found[0].ids for found in together}) > 1
    for picture, found in enumerate(together):
        (alone,) = beam_search(decoder, features[picture : picture + 1], options)
        assert [h.ids for h in found] == [h.ids for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)
        for mine, theirs in zip(found, alone, strict=True):
            assert torch.allclose(mine.attention, theirs.attention, atol=1e-5)


def plain_beam_search(decoder: Decoder, grid: Tensor, options: DecodeOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search over Python lists for one picture (1, R, F), one hypothesis at a time, in double precision."""
    context, first = decoder.prepare(grid)
    width, penalty = options.beam_width, options.length_penalty
    running = [(0.0, (), first)]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for step in range(options.max_words):
        candidates = []
        for total, words, state in running:
            logits, after, _ = decoder.step(torch.tensor([words[-1] if words else START_ID]), state, context)
            for word, log_p in enumerate(torch.log_softmax(logits[0], dim=0).tolist()):
                if word > UNKNOWN_ID or (word == END_ID and step):
                    candidates.append((total + log_p, (*words, word), after))
        candidates.sort(key=lambda candidate: -candidate[0])
        ended += [(rank_score(s, len(w), penalty), w[:-1]) for s, w, _ in candidates[:width] if w[-1] == END_ID]
        ended = sorted(ended, key=lambda found: -found[0])[:width]
        running = [candidate for candidate in candidates if candidate[1][-1] != END_ID][:width]
        if len(ended) == width and rank_score(running[0][0], step + 1, penalty) <= ended[-1][0]:
            break
    return ended or [(rank_score(s, len(w) + 1, penalty), w) for s, w, _ in running]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("name", DECODERS)
def test_all_hypotheses_are_those_of_a_plain_search(name: str, length_penalty: float) -> None:
    decoder, features = (
        build_decoder(3, DECODERS[name]),
        torch.randn(9, 3, 7, generator=torch.Generator().manual_seed(4)),
    )
    options = DecodeOptions(beam_width=3, max_words=8, length_penalty=length_penalty)
    together = beam_search(decoder, features, options)
    assert len({found[0].ids for found in together}) > 2
    exact = build_decoder(3, DECODERS[name]).double()
    for picture, found in zip(features.double().split(1), together, strict=True):
        expected = plain_beam_search(exact, picture, options)
        assert [h.ids for h in found] == [words for _, words in expected]
        assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("place", [0, 1])
def test_a_picture_that_is_done_takes_no_more(place: int) -> None:
    """Alone, EARLY is done after two words: (B,) scores log 0.36 / 2, and (A, C) at log 0.294 is behind.

    With a length penalty (A, C) would catch up on five words, as long as the other picture keeps the search going.
    """
    early: Tree = {(): {A: 0.6, B: 0.4}, (A,): {END_ID: 0.51, C: 0.49}, (B,): {END_ID: 0.9, D: 0.1}}
    late: Tree = {(): {A: 1.0}, (A,): {A: 1.0}, (A, A): {A: 1.0}, (A, A, A): {A: 1.0}}
    options = {"beam_width": 2, "length_penalty": 1.0, "max_words": 5}
    ((alone, *_),) = search([early], **options)
    together = search([early, late] if place == 0 else [late, early], **options)
    assert alone.ids == (B,)
    assert together[place][0].ids == alone.ids
    assert together[place][0].score == pytest.approx(alone.score)


def test_log_probability_is_that_of_teacher_forcing() -> None:
    decoder, features = build_decoder(7), torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(2))
    for picture, found in enumerate(beam_search(decoder, features, DecodeOptions(beam_width=4, max_words=8))):
        for hypothesis in found:
            words = [*hypothesis.ids, END_ID]
            inputs = torch.tensor([[1, *hypothesis.ids, END_ID]])
            logits = decoder(features[picture : picture + 1], inputs, [len(words)], torch.tensor([0])).logits
            log_p = torch.log_softmax(logits, dim=-1)[torch.arange(len(words)), torch.tensor(words)]
            if len(hypothesis.ids) == 8:
                log_p = log_p[:-1]  # cut, not ended
            assert hypothesis.log_probability == pytest.approx(float(log_p.sum()), abs=1e-4)
            assert torch.allclose(hypothesis.attention.sum(-1), torch.ones(len(hypothesis.ids)), atol=1e-5)
