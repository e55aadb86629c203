"""A frozen encoder in bf16 on a CPU, by oneDNN's own convolutions: weights laid out once, ReLU and sum done within.

torch's ordinary convolution rounds and lays out a frozen network's weights anew in every pass, and goes over its output
again for each ReLU and each sum of a residual block.
"""

import itertools
import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from caption_ray.model.encoder import Encoder

# Private, but what torch.compile emits for convolutions on CPUs, with these arguments, from torch 2.1 on.
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
)

_SUMS = (operator.add, operator.iadd, torch.add)


def fuse_convolutions(encoder: Encoder) -> Encoder:
    """Return a copy, computing in bf16, of an encoder that `fold_batch_norm` gave; without oneDNN that encoder itself.

    Features differ from those under autocast by rounding, as those differ from single precision's.
    """
    if not _HAS_ONEDNN:
        return encoder
    assert isinstance(encoder.stages, fx.GraphModule), "fold_batch_norm has traced it"
    graph = fx.Graph()
    graph.output(graph.graph_copy(encoder.stages.graph, {}))
    stages = fx.GraphModule(encoder.stages, graph)
    for node in list(stages.graph.nodes):
        _fuse_relu(stages, node)
    for node in list(stages.graph.nodes):
        if _convolution(stages, node):
            _replace(stages, node, node, other=None, relu=False)
    stages.delete_all_unused_submodules()
    stages.recompile()
    fused = Encoder(stages, encoder.num_features, encoder.image_size, finetune_stages=0)
    with torch.no_grad():
        fused(torch.zeros((1, 3, encoder.image_size, encoder.image_size), dtype=torch.uint8))  # lays out the weights
    return fused


class FusedConvolution(nn.Module):
    """A convolution in bf16, then perhaps the sum with another tensor, then perhaps ReLU."""

    def __init__(self, convolution: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
        assert isinstance(padding, tuple), "torchvision's networks pad by numbers"
        self.how = (list(padding), list(stride), list(dilation), convolution.groups)
        self.relu = relu
        # No parameters: weights as oneDNN lays them out can be neither moved nor saved.
        self.weight = convolution.weight.detach().to(torch.bfloat16, memory_format=torch.channels_last)
        self.bias = None if convolution.bias is None else convolution.bias.detach().to(torch.bfloat16)
        self.is_laid_out = False

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the outputs, in bf16; those of a sum take the place of `other`."""
        inputs = inputs.to(torch.bfloat16)
        if not self.is_laid_out:
            # Told no size, oneDNN takes a layout that some convolutions then change in every pass.
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.how, list(inputs.shape))
            self.is_laid_out = True
        activation = "relu" if self.relu else "none"
        outputs: Tensor
        if other is None:
            outputs = torch.ops.mkldnn._convolution_pointwise(
                inputs, self.weight, self.bias, *self.how, activation, [], ""
            )
        else:
            outputs = torch.ops.mkldnn._convolution_pointwise_.binary(
                other, inputs, self.weight, self.bias, *self.how, "add", 1.0, activation, [], ""
            )
        return outputs


def _fuse_relu(stages: fx.GraphModule, node: fx.Node) -> None:
    """Take a ReLU into the convolution before it, or into the last of those whose sum it is of."""
    if not (node.op == "call_module" and isinstance(stages.get_submodule(str(node.target)), nn.ReLU)):
        return
    (source,) = node.all_input_nodes
    if _convolution(stages, source):
        _replace(stages, source, node, other=None, relu=True)
    elif source.op == "call_function" and source.target in _SUMS and len(source.users) == 1:
        *_, last = (term for term in stages.graph.nodes if term in source.all_input_nodes)
        (other,) = (term for term in source.all_input_nodes if term is not last)
        is_free = {*other.users} <= {*_before(stages, node)}  # nobody reads it afterwards
        if is_free and _convolution(stages, last):
            _replace(stages, last, node, other=other, relu=True)


def _before(stages: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that are computed before this one."""
    return itertools.takewhile(lambda earlier: earlier is not node, stages.graph.nodes)


def _convolution(stages: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a convolution whose outputs go to one place."""
    if node.op != "call_module" or len(node.users) != 1:
        return False
    return isinstance(stages.get_submodule(str(node.target)), nn.Conv2d)


def _replace(stages: fx.GraphModule, convolution: fx.Node, result: fx.Node, other: fx.Node | None, relu: bool) -> None:
    """Have a fused convolution compute `result`, the node at the end of those that are fused."""
    module = stages.get_submodule(str(convolution.target))
    assert isinstance(module, nn.Conv2d)
    name = f"fused_{convolution.name}"
    stages.add_submodule(name, FusedConvolution(module, relu))
    with stages.graph.inserting_before(result):
        inputs = convolution.all_input_nodes[0]
        fused = stages.graph.call_module(name, (inputs,) if other is None else (inputs, other))
    result.replace_all_uses_with(fused)
    stages.graph.erase_node(result)
    stages.graph.eliminate_dead_code()
