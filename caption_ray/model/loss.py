"""The training loss, as a sum and a count, so that the caller divides once by the global count."""

import torch.nn.functional as F
from torch import Tensor

from caption_ray.model.fused_loss import cross_entropy


def caption_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Return the summed cross-entropy of the words, nats, and how many words there are.

    logits: (W, V), the W words of all captions without padding; further rows are ignored.  targets: (W,), ids.
    Label smoothing as in Szegedy et al. 2016, sec. 7: the mass is spread over all V words.
    """
    losses = cross_entropy(logits, targets, label_smoothing)
    if losses is not None:
        return losses.sum(), targets.numel()
    loss_sum = F.cross_entropy(
        logits[: len(targets)].float(), targets, reduction="sum", label_smoothing=label_smoothing
    )
    return loss_sum, targets.numel()


def attention_penalty(attention_sums: Tensor) -> Tensor:
    """Return the doubly stochastic term of Xu et al. 2015, eq. 14, summed over captions.

    attention_sums: (N, R), attention of each caption summed over its words; the term is sum_r (1 - sum_t a_tr)^2.
    """
    return (1.0 - attention_sums.float()).square().sum()
