"""The search of steps that are all alike finds what `beam_search` finds; on a GPU also as a recording."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from unrecorded import Unrecorded

from caption_ray.config import DecodeOptions, ModelConfig
from caption_ray.model import recorded_search
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoder_state import DecoderState, PictureContext
from caption_ray.model.decoding import Hypothesis, StepDecoder, beam_search
from caption_ray.model.recorded_search import FixedSearch, RecordedSearch
from caption_ray.special_ids import END_ID

R, F, V = 3, 7, 12
CPU = torch.device("cpu")
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


def fixed(decoder: StepDecoder, room: int, features: Tensor, options: DecodeOptions) -> list[list[Hypothesis]]:
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


class Spoilt:
    """A decoder whose third step gives no numbers, nor do those that come after it."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.count = decoder, 0

    def start(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        self.count = 0
        return self.decoder.start(features)

    def step(self, ids: Tensor, state: DecoderState, context: PictureContext) -> tuple[Tensor, DecoderState, Tensor]:
        self.count += 1
        logits, state, attention = self.decoder.step(ids, state, context)
        return logits if self.count < 3 else logits.fill_(torch.nan), state, attention


def test_what_ended_before_numbers_were_lost_is_kept() -> None:
    decoder, features = Spoilt(build_decoder(0)), torch.randn(2, R, F)
    options = DecodeOptions(beam_width=5, max_words=6)
    expected = beam_search(decoder, features, options)
    assert all(0 < len(found) < 5 for found in expected)
    check_equal(fixed(decoder, 2, features, options), expected)


def count_steps(decoder: Decoder, room: int, *searched: Tensor) -> int:
    """Return how many steps after the first the last of some searches takes."""
    options, count = DecodeOptions(beam_width=2, max_words=30), 0
    with torch.no_grad():
        search = FixedSearch(decoder, torch.zeros(room, R, F), options)

        def go_on() -> None:
            nonlocal count
            count += 1
            search.go_on()

        for features in searched:
            count = 0
            search.run(features, search.begin, go_on)
    return count


def test_a_search_is_over_when_its_own_pictures_are_done() -> None:
    decoder, pictures = build_decoder(5), torch.randn(12, R, F, generator=torch.Generator().manual_seed(0)).split(1)
    steps = [count_steps(decoder, 1, picture) for picture in pictures]
    early, late = (pictures[steps.index(number)] for number in (min(steps), max(steps)))
    assert min(steps) < max(steps) < 29
    assert count_steps(decoder, 2, torch.cat((late, late)), early) == min(steps)
    assert count_steps(decoder, 2, torch.cat((late, early))) == max(steps)


def test_what_a_recording_writes_stays_in_its_place() -> None:
    with torch.no_grad():
        search = FixedSearch(build_decoder(3), torch.zeros(2, R, F), DecodeOptions(beam_width=2, max_words=4))
        search.begin()
        before = {name: value.data_ptr() for name, value in tensors(search).items()}
        assert len(before) > 12
        search.go_on()
    assert {name: value.data_ptr() for name, value in tensors(search).items()} == before


def tensors(search: FixedSearch) -> dict[str, Tensor]:
    """Return all that a search holds."""
    found = {name: value for name, value in vars(search).items() if isinstance(value, Tensor)}
    return found | search._ended._asdict() | {"keys": search._context.keys, "values": search._context.values}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Unrecorded:
    found = Unrecorded()
    monkeypatch.setattr(recorded_search, "records_on", lambda _: True)
    monkeypatch.setattr(recorded_search, "Recorder", lambda _: found)
    return found


def test_cpu_searches_as_ever() -> None:
    decoder, features = build_decoder(3), torch.randn(70, R, F)
    options = DecodeOptions(beam_width=2, max_words=4)
    search = RecordedSearch(decoder, V, CPU)
    check_equal(search(features, options), beam_search(decoder, features, options))
    assert search(features[:0], options) == []


def test_one_recording_serves_batches_of_about_a_size(recorder: Unrecorded) -> None:
    decoder, options = build_decoder(3), DecodeOptions(beam_width=2, max_words=4)
    search = RecordedSearch(decoder, V, CPU)
    for num_pictures, recorded in ((3, 1), (4, 1), (2, 2), (70, 4), (6, 4), (3, 4)):  # 4; 2; 64 and 8; 8; 4
        features = torch.randn(num_pictures, R, F)
        check_equal(search(features, options), beam_search(decoder, features, options))
        assert recorder.count == 2 * recorded  # the first step, and the others


def test_few_searches_are_kept(recorder: Unrecorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_search, "_MOST_SEARCHES", 2)
    decoder, features = build_decoder(3), torch.randn(2, R, F)
    search = RecordedSearch(decoder, V, CPU)
    for width, recorded in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        options = DecodeOptions(beam_width=width, max_words=4)
        check_equal(search(features, options), beam_search(decoder, features, options))
        assert recorder.count == 2 * recorded


def test_width_of_more_than_half_the_vocabulary_is_not_recorded(recorder: Unrecorded) -> None:
    decoder, features = build_decoder(3), torch.randn(2, R, F)
    options = DecodeOptions(beam_width=V // 2 + 1, max_words=3)
    check_equal(RecordedSearch(decoder, V, CPU)(features, options), beam_search(decoder, features, options))
    assert recorder.count == 0


def test_searches_without_a_recording_where_there_can_be_none(
    recorder: Unrecorded, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.failing = frozenset({3})
    decoder, features, options = build_decoder(3), torch.randn(70, R, F), DecodeOptions(beam_width=2, max_words=4)
    search = RecordedSearch(decoder, V, CPU)
    for _ in range(2):  # the search for 64, and none for 8, which is not tried again
        check_equal(search(features, options), beam_search(decoder, features, options))
        assert recorder.count == 3
    (entry,) = caplog.records
    assert entry.message == (
        "searches for 8 pictures by width 2: computed more slowly, since no CUDA graph could be recorded: "
        "CUDA out of memory"
    )


@pytest.mark.parametrize("max_words", [1, 2])
def test_shortest_searches_have_room_to_be_recorded(recorder: Unrecorded, max_words: int) -> None:
    decoder, features, options = build_decoder(3), torch.randn(2, R, F), DecodeOptions(max_words=max_words)
    check_equal(RecordedSearch(decoder, V, CPU)(features, options), beam_search(decoder, features, options))
    assert recorder.count == 2


def test_search_outside_inference_mode_after_one_inside(recorder: Unrecorded) -> None:
    decoder, features, options = build_decoder(3), torch.randn(2, R, F), DecodeOptions(beam_width=2, max_words=4)
    search = RecordedSearch(decoder, V, CPU)
    with torch.inference_mode():
        inside = search(features, options)
    check_equal(search(features, options), inside)
    assert recorder.count == 2


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
