from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from caption_ray.config import ModelConfig
from caption_ray.model.decoder import Decoder, active_rows, pack_steps
from caption_ray.model.decoder_state import DecoderState

R, F, V, H = 5, 7, 13, 11
# With 20 features and no deep output, values are multiplied before they are averaged; else after.
CONFIGS = {
    f"{size or 'raw'}-{'deep' if deep else 'plain'}-{'tied' if tied else 'untied'}": ModelConfig(
        embedding_size=H if tied and not deep else 3,
        hidden_size=H,
        attention_size=2,
        feature_size=size,
        deep_output=deep,
        tie_embeddings=tied,
    )
    for size, deep, tied in product((None, 6, 20), (False, True), (False, True))
}

# Two pictures, five captions; <start> is 1, <end> 2, <pad> 0. Longest first, as `forward` wants them.
CAPTIONS = [(1, [5, 6, 7, 8]), (0, [9, 4, 12]), (1, [4, 4, 10]), (0, [11, 5]), (1, [6])]
LENGTHS = [5, 4, 4, 3, 2]
PICTURES = torch.tensor([1, 0, 1, 0, 1])
PICTURE_OF_ROW = torch.tensor([0, 0, 1, 1])


def build(config: ModelConfig) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(config, num_features=F, vocabulary_size=V).double().eval()
    with torch.no_grad():  # biases start at zero, where a forgotten one would not be seen
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return decoder


def features() -> Tensor:
    return torch.randn(2, R, F, generator=torch.Generator().manual_seed(2)).double()


def padded(captions: list[list[int]], width: int = 6) -> Tensor:
    rows = [[1, *words, 2] for words in captions]
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


IDS = padded([words for _, words in CAPTIONS])


def by_caption(packed: Tensor, lengths: list[int]) -> list[Tensor]:
    """Undo `pack_steps`: the rows (T, V) of each caption."""
    steps = packed.split([sum(length > step for length in lengths) for step in range(lengths[0])])
    return [torch.stack([steps[t][n] for t in range(length)]) for n, length in enumerate(lengths)]


def textbook(decoder: Decoder, grid: Tensor, inputs: list[int]) -> tuple[Tensor, Tensor]:
    """Xu et al. 2015, one caption, one region at a time: logits (T, V), attention summed over words (R,)."""
    values = decoder.feature_projection(grid)
    attention, total = decoder.attention, torch.zeros(len(grid)).double()
    hidden, cell = torch.tanh(decoder.initial_state(sum(values) / len(values))).split(H)
    rows = []
    for word in inputs:
        scores = [
            attention.score.weight[0]
            @ torch.tanh(attention.key.weight @ value + attention.key.bias + attention.query.weight @ hidden)
            for value in values
        ]
        alpha = torch.softmax(torch.stack(scores), dim=0)
        gate = torch.sigmoid(decoder.context_gate.weight[0] @ hidden + decoder.context_gate.bias[0])
        context = gate * sum(share * value for share, value in zip(alpha, values, strict=True))
        entry = torch.cat((decoder.embedding.weight[word], context))
        hidden, cell = (part[0] for part in decoder.lstm(entry[None], (hidden[None], cell[None])))
        read = torch.tanh(decoder.deep(torch.cat((hidden, context)))) if decoder.config.deep_output else hidden
        rows.append(decoder.output.weight @ read + decoder.output.bias)
        total = total + alpha
    return torch.stack(rows), total


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_its_gradients_are_the_textbooks(name: str) -> None:
    decoder, grids = build(CONFIGS[name]), features().requires_grad_()
    result = decoder(grids, IDS, LENGTHS, PICTURES)
    expected = [textbook(decoder, grids[picture], [1, *words]) for picture, words in CAPTIONS]

    logits = by_caption(result.logits, LENGTHS)
    weights = torch.randn(
        sum(LENGTHS) * V + 5 * R, generator=torch.Generator().manual_seed(3)
    ).double()  # of every number that comes out, so that no error cancels another
    ours = torch.cat([*(part.flatten() for part in logits), result.attention_sums.flatten()])
    theirs = torch.cat([*(part.flatten() for part, _ in expected), *(total for _, total in expected)])
    assert torch.allclose(ours, theirs, atol=1e-6)

    parameters = [*decoder.parameters(), grids]
    for mine, textbooks in zip(
        torch.autograd.grad(ours @ weights, parameters),
        torch.autograd.grad(theirs @ weights, parameters),
        strict=True,
    ):
        assert float(mine.abs().max()) > 0
        assert torch.allclose(mine, textbooks, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_step_word_by_word(name: str) -> None:
    decoder, grids = build(CONFIGS[name]).requires_grad_(False), features()
    result = decoder(grids, IDS, LENGTHS, PICTURES)
    for row, ((picture, words), logits) in enumerate(zip(CAPTIONS, by_caption(result.logits, LENGTHS), strict=True)):
        context, state = decoder.prepare(grids[picture : picture + 1])
        total = torch.zeros(R).double()
        for step, word in enumerate([1, *words]):
            expected, state, attention = decoder.step(torch.tensor([word]), state, context)
            assert torch.allclose(logits[step], expected[0], atol=1e-6)
            total += attention[0]
        assert torch.allclose(result.attention_sums[row], total, atol=1e-6)
        assert float(total.sum()) == pytest.approx(len(words) + 1, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_search_in_single_precision_agrees_with_forward_in_double(name: str) -> None:
    """`start` lays out weights for kernels of single precision, and `step` takes each word's gates once."""
    exact, grids = build(CONFIGS[name]), features()
    inputs = [[1, 5, 5, 9], [1, 5, 6, 9], [1, 4, 5, 5], [1, 5, 7, 7]]  # two rows for each of two pictures
    logits = by_caption(
        exact(grids, torch.tensor([[*row, 2] for row in inputs]), [4] * 4, PICTURE_OF_ROW).logits, [4] * 4
    )
    decoder = build(CONFIGS[name]).float()
    context, state = decoder.start(grids.float())
    state = DecoderState(state.hidden[PICTURE_OF_ROW], state.cell[PICTURE_OF_ROW])
    for step in range(4):
        found, state, attention = decoder.step(torch.tensor([row[step] for row in inputs]), state, context)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), torch.stack([rows[step] for rows in logits]), atol=1e-5)
        assert torch.allclose(attention.sum(-1), torch.ones(4))
    assert torch.equal(context.of(torch.tensor([1])).keys, context.keys[1:])


@torch.no_grad()
def test_every_start_sees_the_weights_as_they_are() -> None:
    decoder = build(CONFIGS["6-deep-untied"]).float()
    ids = torch.tensor([4, 5])
    context, first = decoder.start(features().float())
    before, *_ = decoder.step(ids, first, context)
    decoder.output.bias[7] += 1.0
    context, first = decoder.start(features().float())
    after, *_ = decoder.step(ids, first, context)
    assert (after - before)[:, 7].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("name", ["raw-plain-untied", "6-deep-untied"])
def test_features_may_come_in_half_precision(name: str) -> None:
    decoder, grids = build(CONFIGS[name]), features().half()
    halves, wholes = (decoder(given, IDS, LENGTHS, PICTURES).logits for given in (grids, grids.double()))
    assert halves.dtype == torch.float64
    assert torch.equal(halves, wholes)


def test_no_peeking_at_later_words() -> None:
    decoder, grids = build(CONFIGS["6-deep-untied"]), features()
    before = by_caption(decoder(grids, IDS, LENGTHS, PICTURES).logits, LENGTHS)
    changed = IDS.clone()
    changed[0, 3] = 12  # the third word of the first caption
    after = by_caption(decoder(grids, changed, LENGTHS, PICTURES).logits, LENGTHS)
    assert torch.equal(before[0][:3], after[0][:3])
    assert not torch.allclose(before[0][3], after[0][3])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before[1:], after[1:], strict=True))


def test_padding_changes_nothing() -> None:
    decoder, grids = build(CONFIGS["raw-plain-untied"]), features()
    result = decoder(grids, IDS, LENGTHS, PICTURES)
    wider = padded([words for _, words in CAPTIONS], width=9)
    assert torch.equal(decoder(grids, wider, LENGTHS, PICTURES).logits, result.logits)
    other = IDS.clone()
    other[other == 0] = 7
    assert torch.equal(decoder(grids, other, LENGTHS, PICTURES).logits, result.logits)
    # The last caption alone, in a batch without longer ones.
    alone = decoder(grids[1:], IDS[4:, :3], [2], torch.tensor([0]))
    assert torch.allclose(by_caption(result.logits, LENGTHS)[4], alone.logits, atol=1e-6)


def test_captions_of_equal_length_may_come_in_any_order() -> None:
    decoder, grids = build(CONFIGS["raw-deep-tied"]), features()
    order = [0, 2, 1, 3, 4]
    before = by_caption(decoder(grids, IDS, LENGTHS, PICTURES).logits, LENGTHS)
    after = by_caption(decoder(grids, IDS[order], LENGTHS, PICTURES[order]).logits, LENGTHS)
    assert all(torch.allclose(after[row], before[order[row]], atol=1e-6) for row in range(5))


def test_rows_of_a_picture_step_as_they_would_alone() -> None:
    decoder, grids = build(CONFIGS["6-plain-untied"]), features()
    context, first = decoder.prepare(grids)
    rows = 3
    noise = torch.randn(2, 2 * rows, H).double()
    state = DecoderState(noise[0], noise[1])
    ids = torch.tensor([4, 5, 6, 7, 8, 9])
    logits, after, attention = decoder.step(ids, state, context)
    assert (first.hidden.shape, logits.shape, attention.shape) == ((2, H), (6, V), (6, R))
    for row in range(2 * rows):
        alone, _ = decoder.prepare(grids[row // rows : row // rows + 1])
        part = DecoderState(state.hidden[row : row + 1], state.cell[row : row + 1])
        expected, moved, seen = decoder.step(ids[row : row + 1], part, alone)
        assert torch.allclose(logits[row], expected[0], atol=1e-6)
        assert torch.allclose(after.cell[row], moved.cell[0], atol=1e-6)
        assert torch.allclose(attention[row], seen[0], atol=1e-6)


def test_word_dropout_hides_words_but_no_markers() -> None:
    config = ModelConfig(embedding_size=3, hidden_size=H, attention_size=2, dropout=0, word_dropout=0.999)
    torch.manual_seed(0)
    decoder = Decoder(config, num_features=F, vocabulary_size=V).double()
    hidden = IDS.masked_fill(IDS > 3, 3)
    dropped = decoder.train()(features(), IDS, LENGTHS, PICTURES).logits
    assert torch.allclose(dropped, decoder.eval()(features(), hidden, LENGTHS, PICTURES).logits)
    assert not torch.allclose(dropped, decoder(features(), IDS, LENGTHS, PICTURES).logits)


@pytest.mark.parametrize("deep", [False, True])
def test_half_of_what_the_output_layer_reads_is_dropped(deep: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=400, hidden_size=400, attention_size=2, dropout=0.5, deep_output=deep)
    decoder = Decoder(config, num_features=F, vocabulary_size=V).train()
    read: list[Tensor] = []
    decoder.output.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    decoder._readout(torch.ones(4, 400), torch.ones(4, config.feature_size or F))
    # 1600 draws: the share has a standard deviation of 0.0125.
    assert float((read[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.07)


def test_active_rows_by_hand() -> None:
    assert active_rows([3, 1]) == [2, 1, 1]
    assert active_rows([4, 4, 2, 1]) == [4, 3, 2, 2]
    assert active_rows([1]) == [1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_pack_steps_is_torchs_packing(lengths: list[int]) -> None:
    lengths.sort(reverse=True)
    values = torch.arange(len(lengths) * 9 * 2).view(len(lengths), 9, 2)
    expected = pack_padded_sequence(values, torch.tensor(lengths), batch_first=True)
    assert active_rows(lengths) == expected.batch_sizes.tolist()
    assert torch.equal(pack_steps(values, lengths), expected.data)
