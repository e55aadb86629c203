import math

import pytest
import torch

from caption_ray.model.loss import attention_penalty, caption_loss

LN2 = math.log(2)
# p = 1/2, 1/4, 1/4
LOGITS = torch.tensor([[LN2, 0.0, 0.0]])


def test_sum_and_count_by_hand() -> None:
    logits = torch.cat((LOGITS, LOGITS, torch.zeros(1, 3)))
    loss_sum, num_words = caption_loss(logits, torch.tensor([0, 2, 1]))
    assert float(loss_sum) == pytest.approx(LN2 + 2 * LN2 + math.log(3))
    assert num_words == 3


def test_label_smoothing_spreads_over_all_words() -> None:
    # (1 - 0.3) * -ln p(target) + 0.3 / 3 * (ln 2 + ln 4 + ln 4) = (0.7 + 0.5) ln 2
    loss_sum, _ = caption_loss(LOGITS, torch.tensor([0]), label_smoothing=0.3)
    assert float(loss_sum) == pytest.approx(1.2 * LN2)


def test_half_precision_is_summed_in_full() -> None:
    # 4096 words of ln 2 each; in bfloat16 the sum would stop growing long before.
    logits = torch.zeros(4096, 2, dtype=torch.bfloat16)
    loss_sum, num_words = caption_loss(logits, torch.zeros(4096, dtype=torch.long))
    assert float(loss_sum) / num_words == pytest.approx(LN2, rel=1e-5)


def test_targets_that_torch_refuses_are_refused() -> None:
    """By compiled code too, which takes addresses at their word."""
    with pytest.raises(ValueError, match="batch_size"):
        caption_loss(torch.zeros(2, 10), torch.zeros(5, dtype=torch.long))
    with pytest.raises(RuntimeError, match="expected"):
        caption_loss(torch.zeros(4, 10), torch.zeros(4, dtype=torch.int32))


def test_attention_penalty_by_hand() -> None:
    # (1 - 1)^2 + (1 - 0.5)^2 and (1 - 0)^2 + (1 - 2)^2
    assert float(attention_penalty(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))) == pytest.approx(2.25)
