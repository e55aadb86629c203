"""One copy of the weights for all workers on the CPUs of a machine, in memory that they share.

Each worker computes the gradients of its own batch, sums up its shard of everybody's, and updates that shard of the
weights, of the optimiser's moments and of the average. This is data parallelism with the optimiser's state and the
gradients sharded, as ZeRO's first and second stages are (Rajbhandari et al. 2020), but no tensor is sent: what
DistributedDataParallel has gloo move over the loopback, and has every worker compute once more, is read where it lies.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from caption_ray.train.agreement import all_agree, broadcast_weights, world_size
from caption_ray.train.neighbours import Neighbours, meet_neighbours

_ALIGNMENT = 64
"""Of each weight among all, in numbers."""
_WEIGHTS, _AVERAGE, _MEAN, _SQUARE, _GRADIENTS = range(5)
"""What lies in the memory one after another, each as large as all weights; the last once for each worker."""


class SharedWeights:
    """The weights that train, and which part of each this worker updates. Every worker must do the same with its own.

    A weight's `grad` must be None before gradients are computed, and stays this worker's own. Its part alone is, after
    `sum_gradients`, the sum over all workers.
    """

    def __init__(self, neighbours: Neighbours, weights: Sequence[nn.Parameter]) -> None:
        """Move the weights, which all workers have alike, into the memory. Every worker must do so."""
        self.weights = weights
        self.neighbours = neighbours
        self._rank, self._num_workers = neighbours.rank, neighbours.num_workers
        self._starts, self._size = _lay_out(weights)
        self._shards = [self._shard(worker) for worker in range(self._num_workers)]
        self.shard = self._shards[self._rank]
        """This worker's part of each weight, of its numbers one after another in memory; some are empty."""
        others = [worker for worker in range(self._num_workers) if worker != self._rank]
        own = self._views(_GRADIENTS + self._rank)
        given = {worker: cut(own, self._shards[worker]) for worker in others}
        self._given = {worker: parts for worker, parts in given.items() if parts}  # more workers than there is to give
        taken = [cut(self._views(_GRADIENTS + worker), self.shard) for worker in others]
        self._taken = [parts for parts in taken if parts]
        self._move(_WEIGHTS, weights)

    def own(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return this worker's parts of tensors that are as the weights are, flat, without the empty ones."""
        return cut(tensors, self.shard)

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Return what AdamW is to keep of each weight's gradients and of their squares, zeros at first."""
        return list(zip(self._views(_MEAN), self._views(_SQUARE), strict=True))

    def move_average(self, average: nn.Module) -> list[Tensor]:
        """Move the averages of the weights into the memory, too, and return this worker's parts of them."""
        averages = trained(average)
        self._move(_AVERAGE, averages)
        return self.own(averages)

    def sum_gradients(self) -> Tensor:
        """Add to this worker's parts of the gradients everybody's, and return the norm, (), of all that are summed up.

        When it returns all workers are done with the weights as they were.
        """
        gradients = [weight.grad for weight in self.weights]
        assert all(gradient is not None for gradient in gradients), "a weight that has no part in the loss"
        found = [gradient for gradient in gradients if gradient is not None]
        for worker, given in self._given.items():
            torch._foreach_copy_(given, cut(found, self._shards[worker]))
        self.neighbours.wait()
        own = self.own(found)
        for taken in self._taken:
            torch._foreach_add_(own, taken)
        # Nobody has the sum before all have read what they were given.
        (squares,) = self.neighbours.sum(float(nn.utils.get_total_norm(own)) ** 2)
        return torch.tensor(math.sqrt(squares))

    def _move(self, row: int, values: Sequence[Tensor]) -> None:
        for view, value in zip(self._views(row), values, strict=True):
            if self._rank == 0:
                view.copy_(value.detach())
            value.data = view
        self.neighbours.wait()

    def _shard(self, worker: int) -> list[slice]:
        """Return a worker's part of each weight: an equal share of all numbers, in order."""
        first, last = (self._size // _ALIGNMENT * at // self._num_workers * _ALIGNMENT for at in (worker, worker + 1))
        return [
            slice(*(min(max(at - start, 0), weight.numel()) for at in (first, last)))
            for start, weight in zip(self._starts, self.weights, strict=True)
        ]

    def _views(self, row: int) -> list[Tensor]:
        """Return tensors as the weights are, each with a storage of its own, for a checkpoint to hold no more."""
        return [
            torch.frombuffer(
                self.neighbours.memory,
                dtype=weight.dtype,
                count=weight.numel(),
                offset=(row * self._size + start) * weight.element_size(),
            ).as_strided(weight.size(), weight.stride())  # channels last where the weight is
            for start, weight in zip(self._starts, self.weights, strict=True)
        ]


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that train."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def share_weights(model: nn.Module) -> SharedWeights | None:
    """Have all workers train one copy of the model's weights where they are on one machine's CPUs.

    Returns None, the weights as they were, with one worker, where some are on a GPU or on another machine, and where
    the machine has no memory to share. Every worker must ask.
    """
    weights = trained(model)
    on_cpu = {(weight.dtype, weight.device.type) for weight in weights} == {(weights[0].dtype, "cpu")}
    if world_size() == 1 or not all_agree(on_cpu, weights[0].device):
        return None
    _, size = _lay_out(weights)
    neighbours = meet_neighbours((_GRADIENTS + world_size()) * size * weights[0].element_size())
    if neighbours is None:
        return None
    broadcast_weights(model)
    return SharedWeights(neighbours, weights)


def _lay_out(weights: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where each weight starts among all, and how long they are together, in numbers."""
    sizes = [-(-weight.numel() // _ALIGNMENT) * _ALIGNMENT for weight in weights]
    *starts, size = itertools.accumulate(sizes, initial=0)
    return starts, size


def cut(tensors: Iterable[Tensor], parts: Iterable[slice]) -> list[Tensor]:
    """Return a part of each tensor's numbers, in the order in which they lie in memory; none that is empty, no copy."""
    return [
        tensor.detach().as_strided((tensor.numel(),), (1,))[part]
        for tensor, part in zip(tensors, parts, strict=True)
        if part.start < part.stop
    ]
