"""The words' cross-entropy by compiled C (`kernels/cross_entropy.c`), on CPUs that have a compiler.

The same numbers as `F.cross_entropy` in single precision, up to rounding: logits in half precision are not copied to it
for that, nor gradients back.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caption_ray.model import compiled


class _CrossEntropy(ctypes.Structure):
    """`struct cross_entropy` of kernels/cross_entropy.c, which says what is what."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "words", "vocabulary")),
        ("smoothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "losses", "highest", "log_totals")),
        *((name, ctypes.c_void_p) for name in ("d_losses", "d_logits")),
    ]


class FusedCrossEntropy(torch.autograd.Function):
    """Logits (W, V) and targets (W,) to the cross-entropy (W,) of each word, nats, in single precision.

    Rows of logits without a target are ignored.
    """

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Raises IndexError where a target is not one of the V words."""
        first, last = torch.aminmax(targets)
        if first < 0 or last >= logits.shape[1]:
            raise IndexError(f"targets from {int(first)} to {int(last)}, but {logits.shape[1]} words")
        logits, targets = logits.contiguous(), targets.contiguous()
        losses, *parts = (logits.new_empty(len(targets), dtype=torch.float32) for _ in range(3))
        ctx.kernel, ctx.label_smoothing = kernel, label_smoothing
        ctx.save_for_backward(logits, targets, *parts)
        tensors = {"logits": logits, "targets": targets, "losses": losses, "highest": parts[0], "log_totals": parts[1]}
        compiled.call(kernel.cross_entropy, _CrossEntropy, _numbers(logits, targets, label_smoothing), tensors)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_losses: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits, in their format."""
        logits, targets, highest, log_totals = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        d_logits[len(targets) :] = 0
        tensors = {
            "logits": logits,
            "targets": targets,
            "highest": highest,
            "log_totals": log_totals,
            "d_losses": d_losses.contiguous(),
            "d_logits": d_logits,
        }
        numbers = _numbers(logits, targets, ctx.label_smoothing)
        compiled.call(ctx.kernel.cross_entropy_backward, _CrossEntropy, numbers, tensors)
        return None, d_logits, None, None


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor | None:
    """Return the cross-entropy (W,) of each word, or None where torch's operations must do.

    To these is also left what they refuse.
    """
    is_usual = targets.dtype == torch.int64 and targets.device == logits.device and targets.ndim == 1
    if not is_usual or not 0 < len(targets) <= len(logits) or (kernel := compiled.library_for(logits)) is None:
        return None
    losses: Tensor = FusedCrossEntropy.apply(kernel, logits, targets, label_smoothing)
    return losses


def _numbers(logits: Tensor, targets: Tensor, smoothing: float) -> dict[str, float]:
    return {"words": len(targets), "vocabulary": logits.shape[1], "smoothing": smoothing}
