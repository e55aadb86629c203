"""What is done with the gradients of a step: they are clipped, and looked at whether they are finite."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_SKIPPED = 40
"""Steps in a row that fp16's scaler may skip; halved as often, its first scale would have come down to 6e-8."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


def clip_gradients(weights: Sequence[Tensor], max_norm: float, norm: Tensor | None = None) -> Tensor:
    """Scale the weights' gradients down to `max_norm` together, and return the norm that they had.

    As `nn.utils.clip_grad_norm_`, which multiplies all of them by 1 where they are short enough.
    norm: (), theirs where it is known; that of all of them where this worker has some parts.
    """
    if norm is None:
        norm = nn.utils.get_total_norm(weight.grad for weight in weights if weight.grad is not None)
    if norm.is_cuda or not norm <= max_norm:  # to ask a GPU would take longer than to multiply
        nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    return norm


class GradientWatch:
    """Looks whether the gradients of steps are finite.

    What a GPU computes is looked at a step late, when it is there: to wait for it would have the GPU wait, too.
    """

    def __init__(self) -> None:
        self.num_skipped = 0
        """Steps in a row whose gradient was not finite."""
        self._waiting: tuple[Tensor, torch.cuda.Event, int] | None = None

    def add(self, norm: Tensor, may_skip: int) -> None:
        """Take the norm, (), of a step's gradient.

        Raises NonFiniteLossError where it, or on a GPU that of a step before, is not finite after `may_skip` others
        that were not.
        """
        if not norm.is_cuda:
            self._look(norm, may_skip)
            return
        self.settle()
        kept = torch.empty((), pin_memory=True).copy_(norm, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._waiting = kept, arrived, may_skip

    def settle(self) -> None:
        """Look at the last one, too; see `add`. To be called before weights are kept."""
        if self._waiting is not None:
            (norm, arrived, may_skip), self._waiting = self._waiting, None
            arrived.synchronize()
            self._look(norm, may_skip)

    def _look(self, norm: Tensor, may_skip: int) -> None:
        self.num_skipped = 0 if torch.isfinite(norm) else self.num_skipped + 1
        if self.num_skipped > may_skip:
            raise NonFiniteLossError(
                "the gradient is not finite; lower optimizer.learning_rate, or train with training.precision=fp32"
            )
