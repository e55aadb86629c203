"""Loss and gradients of a step on a GPU, recorded once as a CUDA graph and then launched as a whole.

A step of the decoder is some thousand small kernels, which Python takes several times as long to launch one by one as
the GPU to run. A graph has fixed shapes, so captions are laid out anew: the batch has the same number of pictures, each
picture the same number of captions, and each caption as many words as the longest has, rounded up. What is filled up
computes along and counts nothing.

Shape letters: P pictures, K captions of each, T steps, R regions, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from caption_ray.config import Precision, TrainingConfig
from caption_ray.data.batches import CaptionBatch
from caption_ray.device import autocast
from caption_ray.errors import RunError
from caption_ray.model.caption_layout import CaptionLayout
from caption_ray.model.caption_model import CaptionModel
from caption_ray.model.loss import attention_penalty
from caption_ray.model.recording import Recorder, reason_of, records_on
from caption_ray.special_ids import PAD_ID

_SHORT = 32
_ALIGNMENT = 64
"""Of each weight's gradient among all, in numbers."""


def may_record(model: CaptionModel, device: torch.device) -> bool:
    """Tell whether steps of this model can be graphs: those of a decoder alone, where anything is recorded."""
    return model.encoder is None and records_on(device)


def fill_up(batch: CaptionBatch, num_pictures: int, per_picture: int) -> Tensor:
    """Return the batch's ids as (P * K, T + 1), picture by picture, PAD_ID where there is nothing; T rounded up.

    Raises ValueError where the batch has more pictures, or of one of them more captions.
    """
    captions_of = torch.bincount(batch.picture_index, minlength=1)
    if len(batch.pictures) > num_pictures or int(captions_of.max()) > per_picture:
        raise ValueError(f"a batch of more than {num_pictures} pictures with {per_picture} captions each")
    order = torch.argsort(batch.picture_index, stable=True)
    pictures = batch.picture_index[order]
    places = torch.arange(len(order)) - (captions_of.cumsum(0) - captions_of)[pictures]
    step = 2 if batch.lengths[0] <= _SHORT else 8  # few captions are longer, and every graph takes memory
    num_steps = -(-batch.lengths[0] // step) * step
    ids = batch.ids.new_full((num_pictures * per_picture, num_steps + 1), PAD_ID)
    ids[pictures * per_picture + places, : batch.ids.shape[1]] = batch.ids[order]
    return ids


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a word's loss and a caption's penalty on attention count in what is minimised: numbers, each ()."""

    word: Tensor
    caption: Tensor


def objective(
    model: CaptionModel,
    training: TrainingConfig,
    features: Tensor,
    ids: Tensor,
    layout: CaptionLayout,
    weighting: Weighting,
) -> tuple[Tensor, Tensor]:
    """Return what is to be minimised, and the summed cross-entropy, nats, of words that were filled up.

    features: (P, R, F).  ids: of `fill_up`.  layout: of `CaptionLayout.of_equals`.
    """
    logits, attention = model.decoder.score_words(features, ids[:, :-1].t().flatten(), layout)
    targets = ids[:, 1:].t().flatten()
    loss_sum = F.cross_entropy(
        logits[: len(targets)].float(),
        targets,
        reduction="sum",
        ignore_index=PAD_ID,
        label_smoothing=training.label_smoothing,
    )
    minimised = loss_sum * weighting.word
    if training.attention_penalty:
        sums = layout.sum_by_caption(attention * (targets != PAD_ID).unsqueeze(1))
        is_caption = (ids[:, 1] != PAD_ID).unsqueeze(1)
        # A caption that is none has looked at every region as often as it should.
        minimised = minimised + weighting.caption * attention_penalty(torch.where(is_caption, sums, 1.0))
    return minimised, loss_sum


class GraphedLoss:
    """Computes loss and gradients of batches with at most P pictures and K captions each.

    The gradients of all weights lie in one buffer, which the weights' `grad` are views of, and stay there. On a CPU, in
    tests, the same is computed without a graph.
    """

    def __init__(
        self,
        model: CaptionModel,
        training: TrainingConfig,
        precision: Precision,
        device: torch.device,
        num_pictures: int,
        scale: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        """Lay out the gradients. scale: multiplies what is minimised by fp16's scale, as `GradScaler.scale` does."""
        self._model, self._training, self._precision, self._device = model, training, precision, device
        self._num_pictures, self._per_picture = num_pictures, training.captions_per_picture
        self._scale = scale
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        sizes = [-(-weight.numel() // _ALIGNMENT) * _ALIGNMENT for weight in self._weights]
        self.gradients = torch.zeros(sum(sizes), device=device, dtype=self._weights[0].dtype)
        parts = zip(self._weights, self.gradients.split(sizes), strict=True)
        self._views = [part[: weight.numel()].view_as(weight) for weight, part in parts]
        self._put_gradients()
        self._weighting = torch.zeros(2, device=device)
        self._features: Tensor | None = None
        self._recorded: dict[int, _Recorded] = {}
        self._recorder = Recorder(device)
        scale(torch.zeros((), device=device))  # a scaler makes its scale at the first call, which cannot be recorded

    def __call__(self, batch: CaptionBatch, by_word: float, by_caption: float) -> Tensor:
        """Put the gradients into the buffer, and return the batch's summed cross-entropy, nats.

        batch: features in the place of pictures; on the CPU, but for those, which may be on the GPU already.
        by_word, by_caption: what a word's loss and a caption's penalty count.
        """
        self._put_gradients()
        ids = fill_up(batch, self._num_pictures, self._per_picture)
        features = _send(batch.pictures, self._device)
        if self._features is None:
            self._features = features.new_zeros(self._num_pictures, *features.shape[1:])
        self._features[: len(features)] = features
        self._weighting.copy_(_send(torch.tensor((by_word, by_caption)), self._device))
        ids = _send(ids, self._device)
        if self._device.type != "cuda":
            return self._step(ids, self._layout(ids))
        recorded = self._recorded.get(ids.shape[1])
        if recorded is None:
            recorded = self._recorded[ids.shape[1]] = self._try_to_record(ids)
        else:
            recorded.ids.copy_(ids)
        recorded.replay()
        return recorded.loss_sum.clone()

    def _layout(self, ids: Tensor) -> CaptionLayout:
        return CaptionLayout.of_equals(self._num_pictures, self._per_picture, ids.shape[1] - 1, self._device)

    def _put_gradients(self) -> None:
        """Have the weights show their gradients, even if something has taken them away."""
        for weight, view in zip(self._weights, self._views, strict=True):
            weight.grad = view

    def _try_to_record(self, ids: Tensor) -> "_Recorded":
        try:
            return self._record(ids)
        except RuntimeError as error:
            # Raised, not returned as what the user did wrong is: the other workers would be left waiting.
            raise RunError(
                f"a step with captions of {ids.shape[1] - 1} words cannot be recorded as a CUDA graph "
                f"({reason_of(error)}); if the GPU's memory is too small for it lower training.batch_size, or set "
                "CAPTION_RAY_GRAPHS=off"
            ) from error

    def _record(self, ids: Tensor) -> "_Recorded":
        """Record the step for ids of this shape."""
        layout = self._layout(ids)
        random = torch.cuda.get_rng_state(self._device)
        replay, loss_sum = self._recorder.record(lambda: self._step(ids, layout))
        torch.cuda.set_rng_state(random, self._device)  # dropout is the same whenever a graph is recorded
        return _Recorded(replay=replay, ids=ids, loss_sum=loss_sum, layout=layout)

    def _step(self, ids: Tensor, layout: CaptionLayout) -> Tensor:
        assert self._features is not None
        with autocast(self._precision, self._device):
            weighting = Weighting(*self._weighting.unbind())
            minimised, loss_sum = objective(self._model, self._training, self._features, ids, layout, weighting)
        found = torch.autograd.grad(self._scale(minimised), self._weights)
        torch._foreach_copy_(self._views, found)
        return loss_sum.detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A step that is launched as a whole, and what it reads and writes."""

    replay: Callable[[], None]
    ids: Tensor
    loss_sum: Tensor
    layout: CaptionLayout


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Return values on the device, copied while the host goes on."""
    if values.device.type == device.type:
        return values
    return values.pin_memory().to(device, non_blocking=True)
