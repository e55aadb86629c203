"""An encoder whose weights stay as they are, laid out for one device and number format."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caption_ray.config import AskedPrecision, EncoderPrecision, Precision
from caption_ray.device import autocast
from caption_ray.model.encoder import Encoder, fold_batch_norm
from caption_ray.model.fused_convolution import fuse_convolutions
from caption_ray.model.recording import Recorder, recorded_or_none, records_on, room_for, undisturbed

AT_A_TIME = 4
"""Pictures that go through the network together in single precision on a CPU, or two a thread if that is more.

What layers pass on then mostly stays in the caches. In turn with all of 16 pictures together, on two cores of an EPYC
with AVX2: MobileNetV2 1.4 times as fast by one thread and 1.3 by two, ResNet18 and ResNet50 as fast either way.
"""

_MOST_RECORDED = 64
"""Pictures of a pass on a GPU beyond which its kernels take longer than to launch them one by one."""

ROUNDED_STAGES = 3
"""Stages, of five, that 'mixed' computes in bf16.

They have half of ResNet50's work but a quarter of bf16's squared error (0.5 % of the features, 1 % where all round).
"""

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def encoder_precision(asked: AskedPrecision, found: Precision, backbone: str) -> Precision:
    """Return the format for an encoder's pass where `asked` came to `found`.

    'auto' does not round MobileNetV2's to bf16: its features would differ by 7 %, those of the ResNets do by 1 %.
    """
    return "fp32" if asked == "auto" and found == "bf16" and backbone == "mobilenet_v2" else found


class FrozenEncoder:
    """Makes passes of an encoder without gradients; can be pickled, as a pass can not."""

    def __init__(self, encoder: Encoder) -> None:
        self._folded = fold_batch_norm(encoder)
        self.num_features = encoder.num_features
        self.image_size = encoder.image_size
        self.grid_side = encoder.grid_side

    def on(self, device: torch.device, precision: EncoderPrecision) -> "EncoderPass":
        """Return the pass on `device`, computing in `precision`."""
        return EncoderPass(self._folded, device, precision)


class EncoderPass:
    """Pictures (B, 3, S, S), uint8, to (B, R, F) region features in single precision, on the pass's own device."""

    def __init__(self, folded: Encoder, device: torch.device, precision: EncoderPrecision) -> None:
        self._device = device
        # What 'mixed' does not round computes in single precision.
        self._precision: Precision = "fp32" if precision == "mixed" else precision
        dtype = _DTYPES[self._precision]
        num_rounded = ROUNDED_STAGES if precision == "mixed" else 0
        self._encoder = fuse_convolutions(folded, dtype, num_rounded) if device.type == "cpu" else folded
        self._in_parts = dtype == torch.float32 and self._encoder is not folded
        if self._encoder is folded:
            self._encoder = copy.deepcopy(folded).to(device)
            # What autocast would round anew in every pass: on a GPU two of three operations of a small batch's.
            self._encoder.stages.to(dtype)
        self._recorder = Recorder(device) if records_on(device) else None
        self._recorded: dict[int, _Recorded | None] = {}

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the features."""
        with undisturbed(self._device):
            recorded = self._find(pictures)
            return recorded(pictures) if recorded else self._compute(pictures.to(self._device))

    def _find(self, pictures: Tensor) -> "_Recorded | None":
        """Return the pass that is recorded for so many pictures, or a few more; None where there is none."""
        if self._recorder is None or not 0 < len(pictures) <= _MOST_RECORDED:
            return None
        recorder, room = self._recorder, room_for(len(pictures))
        if room not in self._recorded:
            place = pictures.new_zeros((room, *pictures.shape[1:]), device=self._device)
            self._recorded[room] = recorded_or_none(
                f"passes of the encoder with {room} pictures",
                lambda: _Recorded(place, *recorder.record(lambda: self._compute(place))),
            )
        return self._recorded[room]

    def _compute(self, pictures: Tensor) -> Tensor:
        size = max(AT_A_TIME, 2 * torch.get_num_threads()) if self._in_parts else len(pictures)
        with autocast(self._precision, self._device):
            found = [self._encoder(part) for part in pictures.split(size)]
        return (found[0] if len(found) == 1 else torch.cat(found)).float()


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass that is launched as a whole, and what it reads and writes: pictures and features, (B, ...) each."""

    pictures: Tensor
    replay: Callable[[], None]
    features: Tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures, B or fewer."""
        self.pictures[: len(pictures)] = pictures
        self.replay()
        return self.features[: len(pictures)].clone()
