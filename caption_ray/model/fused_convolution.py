"""A frozen encoder on a CPU, by oneDNN's own convolutions: weights laid out beforehand, activation and sum done within.

torch's ordinary convolution lays out a frozen network's weights anew in every pass (and rounds them, for bf16), and the
network goes over its output again for each ReLU and each sum of a residual block.
"""

import functools
import itertools
import operator
import platform
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn

from caption_ray.model.encoder import Encoder

# Private, but what torch.compile emits for convolutions on CPUs, with these arguments; the last is AOTInductor's.
_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    and hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")
)
_HAS_ONEDNN_BF16 = _HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

_SUMS = (operator.add, operator.iadd, torch.add)

_Activation = tuple[str, list[float]]
_NO_ACTIVATION: _Activation = ("none", [])
_RELU: _Activation = ("relu", [])
_DtypeOf = Callable[[fx.Node], torch.dtype]


def fuse_convolutions(encoder: Encoder, dtype: torch.dtype = torch.bfloat16, num_rounded: int = 0) -> Encoder:
    """Return a copy, computing in `dtype`, of an encoder that `fold_batch_norm` gave; itself where oneDNN is not there.

    dtype: bfloat16 or float32. In single precision features stay the same but for rounding; in bf16 they differ from
    those under autocast as those differ from single precision's.  num_rounded: stages, the first, that compute in bf16
    in any case where oneDNN does; of a ResNet not the stem alone, to which its next stage may add.
    The network must be one that sums tensors of one shape and changes none in place but by its activations, as
    torchvision's do.
    """
    if not (_HAS_ONEDNN_BF16 if dtype == torch.bfloat16 else _HAS_ONEDNN):
        return encoder
    assert isinstance(encoder.stages, fx.GraphModule), "fold_batch_norm has traced it"
    graph = fx.Graph()
    graph.output(graph.graph_copy(encoder.stages.graph, {}))
    stages = fx.GraphModule(encoder.stages, graph)
    dtype_of = functools.partial(_dtype_of, dtype=dtype, num_rounded=num_rounded if _HAS_ONEDNN_BF16 else 0)
    for node in list(stages.graph.nodes):
        if activation := _activation(stages, node):
            (source,) = node.all_input_nodes
            _fuse_sum(stages, source, node, activation, dtype_of)
            if _convolution(stages, source) and len(source.users) == 1:
                _replace(stages, source, node, None, activation, dtype_of)
    for node in list(stages.graph.nodes):
        _fuse_sum(stages, node, node, _NO_ACTIVATION, dtype_of)
    for node in list(stages.graph.nodes):
        if _convolution(stages, node):
            _replace(stages, node, node, None, _NO_ACTIVATION, dtype_of)
    stages.delete_all_unused_submodules()
    stages.recompile()
    return Encoder(stages, encoder.num_features, encoder.image_size, finetune_stages=0)


class FusedConvolution(nn.Module):
    """A convolution in bf16 or fp32, then perhaps the sum with another tensor, then perhaps ReLU or ReLU6.

    It keeps its weight as it came beside one or two layouts of it.
    """

    def __init__(self, convolution: nn.Conv2d, activation: _Activation, dtype: torch.dtype) -> None:
        super().__init__()
        stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
        assert isinstance(padding, tuple), "torchvision's networks pad by numbers"
        assert convolution.padding_mode == "zeros", "as they do"
        self.how = (list(padding), list(stride), list(dilation), convolution.groups)
        self.activation = activation
        self.after_sum = None if activation == _NO_ACTIVATION else activation[0]
        self.dtype = dtype
        # No parameters: weights as oneDNN lays them out can be neither moved nor saved.
        self.weight = convolution.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        self._layouts: dict[bytes, Tensor] = {}
        self._laid_out: dict[tuple[tuple[int, ...], int], Tensor] = {}

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the outputs, in `dtype`; those of a sum take the place of `other`."""
        inputs = inputs.to(self.dtype)
        weight = self._weight_for(inputs)
        name, limits = self.activation
        outputs: Tensor
        if other is None:
            outputs = torch.ops.mkldnn._convolution_pointwise(inputs, weight, self.bias, *self.how, name, limits, "")
        else:
            outputs = torch.ops.mkldnn._convolution_pointwise_.binary(
                other, inputs, weight, self.bias, *self.how, "add", 1.0, self.after_sum, limits, ""
            )
        return outputs

    def _weight_for(self, inputs: Tensor) -> Tensor:
        """Return the weight as oneDNN wants it for such inputs and as many threads.

        Some layers' layout depends on the number of pictures where threads share them, and on that of threads. In
        another one than it wants it lays the weight out anew in every pass, which can take longer than the rest.
        """
        key = tuple(inputs.shape), torch.get_num_threads()
        if key not in self._laid_out:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.how, list(inputs.shape))
            layout = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).tolist())
            self._laid_out[key] = self._layouts.setdefault(layout, weight)  # mostly one that is there
        return self._laid_out[key]


def _dtype_of(convolution: fx.Node, dtype: torch.dtype, num_rounded: int) -> torch.dtype:
    """Return what a convolution computes in, by its stage, with whose number its name begins."""
    return torch.bfloat16 if int(str(convolution.target).partition(".")[0]) < num_rounded else dtype


def _activation(stages: fx.GraphModule, node: fx.Node) -> _Activation | None:
    """Return which of those that a convolution can take in this node is, if it is one."""
    module = stages.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.ReLU6):
        return "hardtanh", [0.0, 6.0]
    return _RELU if isinstance(module, nn.ReLU) else None


def _fuse_sum(
    stages: fx.GraphModule, node: fx.Node, result: fx.Node, activation: _Activation, dtype_of: _DtypeOf
) -> None:
    """Take a sum, and the activation `result` of it if it has one, into the last of the convolutions it is of."""
    if not (node.op == "call_function" and node.target in _SUMS and not node.kwargs):
        return
    if activation not in (_NO_ACTIVATION, _RELU) or (result is not node and len(node.users) != 1):
        return  # oneDNN has no other after a sum
    *_, last = (term for term in stages.graph.nodes if term in node.all_input_nodes)
    others = [term for term in node.all_input_nodes if term is not last]
    if len(others) == 1 and _convolution(stages, last) and len(last.users) == 1:
        (other,) = others
        if {*other.users} <= {*_before(stages, last), node}:  # nobody reads it afterwards, nor while it is written
            _replace(stages, last, result, other, activation, dtype_of)


def _before(stages: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that are computed before this one."""
    return itertools.takewhile(lambda earlier: earlier is not node, stages.graph.nodes)


def _convolution(stages: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a convolution."""
    return node.op == "call_module" and isinstance(stages.get_submodule(str(node.target)), nn.Conv2d)


def _replace(
    stages: fx.GraphModule,
    convolution: fx.Node,
    result: fx.Node,
    other: fx.Node | None,
    activation: _Activation,
    dtype_of: _DtypeOf,
) -> None:
    """Have a fused convolution compute `result`, the node at the end of those that are fused."""
    module = stages.get_submodule(str(convolution.target))
    assert isinstance(module, nn.Conv2d)
    name = f"fused_{convolution.name}"
    stages.add_submodule(name, FusedConvolution(module, activation, dtype_of(convolution)))
    with stages.graph.inserting_before(result):
        inputs = convolution.all_input_nodes[0]
        fused = stages.graph.call_module(name, (inputs,) if other is None else (inputs, other))
    result.replace_all_uses_with(fused)
    stages.graph.erase_node(result)
    stages.graph.eliminate_dead_code()
