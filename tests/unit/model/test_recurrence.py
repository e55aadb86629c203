import pytest
import torch
from torch import Tensor

from caption_ray.model.caption_layout import CaptionLayout
from caption_ray.model.decoder import active_rows
from caption_ray.model.recurrence import StepWeights, multiplies_less_first, unroll

R, A, D, H = 3, 2, 5, 4
LENGTHS = [4, 3, 3, 1]
PICTURES = torch.tensor([2, 0, 2, 2])  # picture 1 has no caption


def layout() -> CaptionLayout:
    return CaptionLayout(PICTURES, active_rows(LENGTHS), 3)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [
        (sum(LENGTHS), 4 * H), (3, R, A), (3, R, D), (3, H), (3, H),
        (A, H), (A,), (1, H), (1,), (4 * H, D), (4 * H, H),
    ]  # fmt: skip
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def run(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    word_gates, keys, values, hidden, cell, *weights = tensors
    return unroll(layout(), word_gates, keys, values, hidden, cell, StepWeights(*weights))


def test_layout_by_hand() -> None:
    """Rows are of pictures 2, 0, 2, 2: picture 2 ranks first, its captions stand in places 0, 1, 2."""
    made = layout()
    assert made.active == [4, 3, 3, 1]
    assert made.active_pictures == [2, 2, 2, 1]
    assert made.ranked.tolist() == [2, 0]
    assert made.per_picture == 3
    assert made.rank.tolist() == [0, 1, 0, 0]
    assert made.slot.tolist() == [0, 3, 1, 2]  # of 2 pictures x 3 places
    assert made.captions().tolist() == [[0, 2, 3], [1, 4, 4]]
    assert made.slots(0, 4).tolist() == [0, 12, 1, 2]  # of 2 pictures x 4 steps x 3 places
    assert made.slots(3, 1).tolist() == [9]
    assert made.rows.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0]
    # First states take places 0 to 3, words from 4 on: the second word of row 0 follows that in place 4.
    assert made.words_before.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(run, inputs())


def test_gradients_with_a_caption_a_picture() -> None:
    """Where each picture has one caption, rows and pictures are the same, and nothing is dealt out."""
    alone = CaptionLayout(torch.tensor([2, 0, 1]), active_rows([4, 4, 3]), 3)

    def run_alone(word_gates: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values, hidden, cell, *weights = tensors
        return unroll(alone, word_gates, keys, values, hidden, cell, StepWeights(*weights))

    assert alone.per_picture == 1
    assert torch.autograd.gradcheck(run_alone, inputs())


@pytest.mark.parametrize("used", [0, 1, 2])
def test_gradients_of_each_result_alone(used: int) -> None:
    """What the loss does not touch has no gradient; the penalty on attention touches attention alone."""
    assert torch.autograd.gradcheck(lambda *tensors: run(*tensors)[used], inputs(), fast_mode=True)


def test_values_that_need_no_gradient_get_none() -> None:
    tensors = inputs()
    tensors[2] = tensors[2].detach()
    sum(result.sum() for result in run(*tensors)).backward()
    assert tensors[2].grad is None
    everything = inputs()
    sum(result.sum() for result in run(*everything)).backward()
    assert torch.equal(tensors[1].grad, everything[1].grad)
    assert everything[2].grad[1].abs().sum() == 0  # the picture that nothing is said of
    assert everything[2].grad[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_near(dtype: torch.dtype) -> None:
    exact = inputs()
    sum(result.square().sum() for result in run(*exact)).backward()
    rounded = inputs(dtype)
    results = run(*rounded)
    assert {result.dtype for result in results} == {dtype}
    sum(result.float().square().sum() for result in results).backward()
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.grad.dtype == dtype
        assert (mine.grad.double() - theirs.grad).norm() < 0.05 * theirs.grad.norm()


def test_values_multiplied_beforehand_give_the_same() -> None:
    """Attention's average and the gate's factor change places with the product by the LSTM's context weights."""
    tensors = inputs()
    word_gates, keys, values, hidden, cell, query, score, gate, gate_bias, context, state = tensors
    expected_hidden, _, expected_attention = run(*tensors)
    (expected_hidden.square().sum() + expected_attention[:, 0].sum()).backward()
    expected = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None

    weights = StepWeights(query, score, gate, gate_bias, None, state)
    results = unroll(layout(), word_gates, keys, values @ context.T, hidden, cell, weights)
    (results[0].square().sum() + results[2][:, 0].sum()).backward()

    torch.testing.assert_close(results[0], expected_hidden)
    torch.testing.assert_close(results[2], expected_attention)
    assert results[1].shape == (sum(LENGTHS), 0)
    for tensor, gradient in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)


@pytest.mark.parametrize(
    ("num_pictures", "num_words", "trained", "less"),
    [
        # In multiplications by all 1024 x 2048 weights: 2 x 32 x 49 regions + 3 x 1900 x 49 / 2048 = 3,272
        # against 3 x 1900 words + 2 x 1900 x 49 / 1024 = 5,882
        (32, 1900, False, True),
        (32, 1900, True, True),  # 4,840 against 5,973
        (16, 190, False, False),  # 1,582 against 588: a caption a picture
    ],
)
def test_many_words_of_few_pictures_want_their_values_multiplied_first(
    num_pictures: int, num_words: int, trained: bool, less: bool
) -> None:
    values = torch.empty(num_pictures, 49, 2048, device="meta", requires_grad=trained)
    assert multiplies_less_first(values, torch.empty(1024, 2048, device="meta"), num_words) is less


def test_attention_sums_to_one_at_every_word() -> None:
    _, _, attention = run(*inputs())
    assert attention.shape == (sum(LENGTHS), R)
    torch.testing.assert_close(attention.sum(1), torch.ones(sum(LENGTHS), dtype=torch.float64))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("beforehand", [False, True])
@pytest.mark.parametrize("per_picture", [1, 2])
def test_equal_captions_have_a_loop_of_their_own_that_computes_the_same(
    per_picture: int, beforehand: bool, device: str
) -> None:
    """Results and gradients, of all results and of each alone; also with values multiplied beforehand."""
    where = torch.device(device)
    num_steps, num_pictures = 3, 2
    rows = num_pictures * per_picture
    equal = CaptionLayout.of_equals(num_pictures, per_picture, num_steps, where)
    picture_index = torch.arange(num_pictures, device=where).repeat_interleave(per_picture)
    general = CaptionLayout(picture_index, [rows] * num_steps, num_pictures)
    assert equal.regular
    assert not general.regular
    width = 4 * H if beforehand else D
    generator = torch.Generator().manual_seed(4)
    shapes = [
        (num_steps * rows, 4 * H), (num_pictures, R, A), (num_pictures, R, width), (num_pictures, H), (num_pictures, H),
        (A, H), (A,), (1, H), (1,), (4 * H, H), (4 * H, D),
    ]  # fmt: skip
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    made = [values.to(where).requires_grad_() for values in drawn]

    def run_on(layout: CaptionLayout, *tensors: Tensor) -> tuple[Tensor, ...]:
        word_gates, keys, values, hidden, cell, query, score, gate, bias, state, context = tensors
        weights = StepWeights(query, score, gate, bias, None if beforehand else context, state)
        return unroll(layout, word_gates, keys, values, hidden, cell, weights)

    found, expected = run_on(equal, *made), run_on(general, *made)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    used = made[:-1] if beforehand else made
    touched = [[0, 2], [0], [2]] if beforehand else [[0, 1, 2], [0], [1], [2]]
    for results in touched:
        one, other = (
            torch.autograd.grad(sum(result[part].sin().sum() for part in results), used, retain_graph=True)
            for result in (found, expected)
        )
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right)
