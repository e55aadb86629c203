"""Products in bf16 with weights that stay, by compiled C (`kernels/product.c`), on CPUs.

Weights are half as long to read as in single precision, and AMX multiplies them many times as fast. torch's own would
round the sums too, and write machine code for every number of rows that a search comes down to.
"""

import ctypes

import torch
from torch import Tensor

from caption_ray.model import compiled
from caption_ray.model.arithmetic import by_onednn

_PANEL = 32


class _Product(ctypes.Structure):
    """`struct product` of kernels/product.c, which says what is what."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "rows", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("in_", "weights", "bias", "panels", "out")),
    ]


def product_kernel(*weights: Tensor) -> ctypes.CDLL | None:
    """Return the compiled code for products with such weights (O, I), or None where torch's operations must do."""
    if not all(by_onednn(weight) for weight in weights):
        return None
    return compiled.library_for(weights[0].to(torch.bfloat16), *(weight.shape[1] for weight in weights))


class RoundedProduct:
    """Inputs (..., I) to inputs W^T + b (..., O), in and out in single precision, inputs and weights rounded to bf16.

    Weights (O, I) are laid out once; those that change later are not followed. Sums are in single precision.
    """

    def __init__(self, kernel: ctypes.CDLL, weight: Tensor, bias: Tensor | None = None) -> None:
        self.kernel, self.bias = kernel, None if bias is None else bias.detach().float().contiguous()
        outputs, inputs = weight.shape
        self.sizes = {"inputs": inputs, "outputs": outputs}
        # Room for them in single precision, which is how they are kept where the CPU multiplies in no other.
        self.panels = torch.empty(-(-outputs // _PANEL) * _PANEL, inputs)
        rounded = weight.detach().to(torch.bfloat16).contiguous()
        compiled.call(
            kernel.lay_out_product, _Product, {"rows": 0, **self.sizes}, {"weights": rounded, "panels": self.panels}
        )

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product."""
        rows = inputs.reshape(-1, self.sizes["inputs"]).to(torch.bfloat16).contiguous()
        out = torch.empty(len(rows), self.sizes["outputs"])
        tensors = {"in_": rows, "bias": self.bias, "panels": self.panels, "out": out}
        compiled.call(self.kernel.product, _Product, {"rows": len(rows), **self.sizes}, tensors)
        return out.view(*inputs.shape[:-1], self.sizes["outputs"])
