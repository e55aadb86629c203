"""Products in bf16 with weights that stay, by compiled C (`kernels/product.c`), on CPUs with AMX.

Weights are half as long to read as in single precision, and multiplied several times as fast. torch's own would round
the sums too, and write machine code for every number of rows that a search comes down to.
"""

import ctypes

import torch
import torch.nn.functional as F
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
    """Return the compiled code for products with such weights (O, I), or None where torch's operations do better."""
    if not all(by_onednn(weight) for weight in weights):
        return None
    kernel = compiled.library_for(weights[0].new_empty(0, dtype=torch.bfloat16))
    return kernel if kernel is not None and kernel.pays() else None


class RoundedProduct:
    """Inputs (..., I) to inputs W^T + b (..., O), in and out in single precision, inputs and weights rounded to bf16.

    Weights (O, I) are laid out once; those that change later are not followed. Sums are in single precision.
    """

    def __init__(self, kernel: ctypes.CDLL, weight: Tensor, bias: Tensor | None = None) -> None:
        self.kernel, self.bias = kernel, None if bias is None else bias.detach().float().clone()
        self.num_outputs, self.num_inputs = weight.shape
        self.num_zeros = -self.num_inputs % _PANEL  # inputs that are added, of zeros
        self.sizes = {"inputs": self.num_inputs + self.num_zeros, "outputs": self.num_outputs}
        # Room for them in single precision, which is how they are kept where the CPU multiplies in no other.
        self.panels = torch.empty(self.num_outputs + -self.num_outputs % _PANEL, self.sizes["inputs"])
        tensors = {"weights": self._rounded(weight.detach()), "panels": self.panels}
        compiled.call(kernel.lay_out_product, _Product, {"rows": 0, **self.sizes}, tensors)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the product."""
        rows = self._rounded(inputs.reshape(-1, self.num_inputs))
        out = torch.empty(len(rows), self.num_outputs)
        tensors = {"in_": rows, "bias": self.bias, "panels": self.panels, "out": out}
        compiled.call(self.kernel.product, _Product, {"rows": len(rows), **self.sizes}, tensors)
        return out.view(*inputs.shape[:-1], self.num_outputs)

    def _rounded(self, rows: Tensor) -> Tensor:
        rounded = rows.to(torch.bfloat16)
        return (F.pad(rounded, (0, self.num_zeros)) if self.num_zeros else rounded).contiguous()
