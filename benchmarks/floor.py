"""How fast a step of the decoder could be on this machine: what must be multiplied and moved, over measured rates."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from compare import now

from caption_ray.config import ModelConfig
from caption_ray.model.decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Measured rates: of a large matrix product, FLOP/s, and of a large copy, bytes read and written per second."""

    matrix_rate: float
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one training step must do."""

    flops: float
    num_bytes: float

    def seconds(self, machine: Machine) -> float:
        """Return the time of the products and, after them, of the moves."""
        return self.flops / machine.matrix_rate + self.num_bytes / machine.bandwidth


def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """Measure a product of 2048 x 2048 matrices and a copy of 256 MiB; the lower quartile of twelve times.

    On a GPU many are launched at a time, so that no launch is waited for.
    """
    at_once = 50 if device.type == "cuda" else 1
    left, right = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)

    def best(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(12):
            started = now()
            for _ in range(at_once):
                run()
            taken.append((now() - started) / at_once)
        return statistics.quantiles(taken, n=4)[0]

    product, copy = best(lambda: left @ right), best(lambda: target.copy_(source))
    return Machine(matrix_rate=2 * 2048**3 / product, bandwidth=2 * source.nbytes / copy)


def work_of_step(
    config: ModelConfig, num_features: int, vocabulary: int, *, pictures: int, regions: int, words: int
) -> Work:
    """Count a step of the original's decoder: forward, backward and AdamW, on features of a frozen encoder.

    Products: three passes (forward, gradients of input and weight) but two where the input is a frozen feature; of the
    two orders in which values, attention and LSTM can be multiplied, the shorter. Moves: AdamW reads weight, gradient
    and two moments and writes weight and moments. The attention's energies need not leave the cache, and do not count.
    """
    hidden, attention, embedding = config.hidden_size, config.attention_size, config.embedding_size
    gates = 4 * hidden
    beforehand = 2 * pictures * regions * num_features * gates + 3 * words * regions * gates
    afterwards = 3 * words * num_features * gates + 2 * words * regions * num_features
    multiplications = (
        2 * pictures * regions * num_features * attention
        + 2 * pictures * num_features * 2 * hidden
        + min(beforehand, afterwards)
        + 3 * words * (embedding + hidden) * gates
        + 3 * words * hidden * attention
        + 3 * words * hidden * vocabulary
    )
    weights = sum(weight.numel() for weight in Decoder(config, num_features, vocabulary).parameters())
    return Work(flops=2 * multiplications, num_bytes=7 * 4 * weights)
