"""Products, means and tanh by the kernels that are fastest where they run.

`F.linear` in single precision on a CPU goes to MKL, which on AMD's CPUs reaches less than half of what oneDNN does; so
does MKL's tanh beside torch's own sigmoid. Both ways agree up to rounding. All else (GPUs, other formats, autocast,
whatever needs a gradient) takes torch's ordinary operations.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Private, but what torch.compile emits for linear layers on CPUs, with these arguments, from torch 2.1 on.
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)


def by_onednn(values: Tensor) -> bool:
    """Tell whether products with `values` are to be oneDNN's: single precision on a CPU, without a graph."""
    return (
        _HAS_ONEDNN
        and values.device.type == "cpu"
        and values.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


Multiply = Callable[[Tensor], Tensor]
"""Inputs (..., I) to outputs (..., O), by weights that are its own."""


class Product:
    """Inputs (..., I) to inputs W^T + b (..., O), the weights (O, I) being laid out once for many products.

    Weights that change later are not followed. Under autocast they are rounded once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = None if bias is None else bias.detach().clone()
        self.packed = by_onednn(weight)
        device = weight.device.type
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        elif torch.is_autocast_enabled(device) and weight.dtype == torch.float32:
            weight = weight.to(torch.get_autocast_dtype(device))
        self.weight = weight

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product."""
        if self.packed:
            return _onednn_linear(inputs, self.weight, self.bias)
        return F.linear(inputs, self.weight, self.bias)


class _SplitInputs(torch.autograd.Function):
    """See `split_inputs`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ctx.size, ctx.exact = size, weight.dtype
        return weight[:, :size].to(dtype), weight[:, size:].to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_first: Tensor, d_rest: Tensor) -> tuple[Tensor, None, None]:
        gradient = d_first.new_empty(len(d_first), d_first.shape[1] + d_rest.shape[1], dtype=ctx.exact)
        gradient[:, : ctx.size] = d_first
        gradient[:, ctx.size :] = d_rest
        return gradient, None, None


def split_inputs(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the weights (O, I) of the first `size` inputs and of the rest, under autocast rounded to its format.

    As slices and autocast would have it, but that the gradient is put together in one pass over it instead of three.
    """
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return weight[:, :size], weight[:, size:]
    first, rest = _SplitInputs.apply(weight, size, torch.get_autocast_dtype(device))
    return first, rest


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs (..., I) W^T + b, (..., O): a product whose weights (O, I) are not laid out for more."""
    if by_onednn(inputs) and by_onednn(weight):
        return _onednn_linear(inputs, weight.contiguous(), bias)
    return F.linear(inputs, weight, bias)


def _onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # With gaps between rows, oneDNN falls back to loops that are slower by orders of magnitude.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight, bias, "none", [], "")
    return product


def tanh(values: Tensor) -> Tensor:
    """Return tanh: on a CPU in single precision as 2 sigmoid(2x) - 1, within 2e-7 of it."""
    if by_onednn(values):
        return torch.sigmoid(2 * values).mul_(2).sub_(1)
    return torch.tanh(values)


def mean_of_regions(values: Tensor) -> Tensor:
    """Return the means (P, D) of values (P, R, D)."""
    if values.device.type == "cpu" and values.dtype == torch.bfloat16:
        # By a product, whose sums are in single precision; autocast would copy all values to it.
        return torch.bmm(values.new_ones(len(values), 1, values.shape[1]), values).squeeze(1) / values.shape[1]
    return values.mean(1)
