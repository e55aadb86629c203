"""From pictures, as bytes, to captions and attention maps, with a bundle."""

import copy
import math
from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from caption_ray.bundle import Bundle, load_bundle
from caption_ray.caption import Caption
from caption_ray.config import AskedPrecision, DecodeOptions, Precision
from caption_ray.data import images
from caption_ray.data.batches import stack_pictures
from caption_ray.device import pick_device, resolve_precision
from caption_ray.errors import BundleError
from caption_ray.model.decoding import Hypothesis, greedy_steps
from caption_ray.model.frozen_decoder import FrozenDecoder
from caption_ray.model.frozen_encoder import FrozenEncoder, encoder_precision
from caption_ray.model.recorded_search import RecordedSearch
from caption_ray.model.recording import undisturbed
from caption_ray.special_ids import END_ID
from caption_ray.text.vocabulary import Vocabulary


def to_captions(hypotheses: Sequence[Hypothesis], vocabulary: Vocabulary) -> list[Caption]:
    """Return a search's hypotheses for one picture as captions, in their order."""
    captions = []
    for hypothesis in hypotheses:
        side = round(hypothesis.attention.shape[-1] ** 0.5)
        captions.append(
            Caption(
                words=tuple(vocabulary.decode(hypothesis.ids)),
                log_probability=hypothesis.log_probability,
                attention=hypothesis.attention.float().cpu().numpy().reshape(-1, side, side),
            )
        )
    return captions


class Captioner:
    """A model ready to caption pictures; holds its own copy on one device, batch norm folded.

    precision: of the encoder. 'auto' is bf16 where the hardware computes in it and the backbone bears it: features of
    the ResNet family then differ by 1 %, MobileNetV2's would by 7 %.
    With bf16, and with 'auto' where the hardware has it, a decoder on a CPU with AMX rounds the factors of its products
    too (but for the projection of features), all else being fp32: 99 in 100 of a trained model's captions of Flickr8k's
    dev split stay the same.
    """

    def __init__(self, bundle: Bundle, device: torch.device | None = None, precision: AskedPrecision = "fp32") -> None:
        self.bundle = bundle
        self.device = device or pick_device()
        self.precision = _encoder_precision(precision, bundle.config.encoder.backbone, self.device)
        assert bundle.model.encoder is not None, "a bundle has its encoder"
        with undisturbed(self.device):
            self._encoder = FrozenEncoder(bundle.model.encoder).on(self.device, self.precision)
            decoder = copy.deepcopy(bundle.model.decoder).to(self.device).eval()
            self._searched = FrozenDecoder(decoder, resolve_precision(precision, self.device) == "bf16")
        self._search = RecordedSearch(self._searched, bundle.config.vocabulary_size, self.device)

    @classmethod
    def load(cls, location: str, device: torch.device | None = None, precision: AskedPrecision = "fp32") -> "Captioner":
        """Load a bundle from a folder or URI. Raises BundleError."""
        return cls(load_bundle(location), device, precision)

    def decode_picture(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Return the picture in `data` as the model wants it. Raises PictureError."""
        return images.decode_square(data, self.bundle.config.encoder.image_size)

    def caption(
        self, pictures: Sequence[npt.NDArray[np.uint8]], options: DecodeOptions | None = None
    ) -> list[list[Caption]]:
        """Return for each picture (from `decode_picture`) its captions, best first; at least one each."""
        return self.caption_each(pictures, [options or self.bundle.config.decode] * len(pictures))

    def caption_each(
        self, pictures: Sequence[npt.NDArray[np.uint8]], options: Sequence[DecodeOptions]
    ) -> list[list[Caption]]:
        """Do as `caption`, each picture with options of its own: one encoder pass, a search for each set of options.

        Raises BundleError where the weights give no numbers.
        DecodeOptions are equal by value, so those who ask for the same are searched for together.
        """
        if not pictures:
            return []
        features = self._encode(pictures)
        groups: dict[DecodeOptions, list[int]] = {}
        for index, asked in enumerate(options):
            groups.setdefault(asked, []).append(index)
        captions: dict[int, list[Caption]] = {}
        for asked, members in groups.items():
            with undisturbed(self.device):
                chosen = features if len(groups) == 1 else features[torch.tensor(members, device=self.device)]
            found = self._search(chosen, asked)
            for index, hypotheses in zip(members, found, strict=True):
                if not hypotheses:
                    raise self._spoilt()
                captions[index] = to_captions(hypotheses, self.bundle.vocabulary)
        return [captions[index] for index in range(len(pictures))]

    def caption_picture(self, picture: Image.Image, options: DecodeOptions | None = None) -> list[Caption]:
        """Return the captions of one opened RGB picture, best first; at least one."""
        return self.caption([images.to_square(picture, self.bundle.config.encoder.image_size)], options)[0]

    def stream(
        self, picture: npt.NDArray[np.uint8], max_words: int
    ) -> Generator[tuple[str, float, Tensor], None, Caption]:
        """Yield the greedy caption's words as they are found: word, its log-probability, attention (R,).

        The generator returns the whole caption, whose log-probability counts the end too, if it got there.
        Raises BundleError where the weights give no numbers.
        """
        ids: list[int] = []
        attended: list[Tensor] = []
        total = 0.0
        steps = greedy_steps(self._searched, self._encode([picture]), max_words)
        while True:
            with undisturbed(self.device):
                word = next(steps, None)
                if word is None:
                    break
                found, log_probability = int(word.ids[0]), float(word.log_probability[0])
                attention = word.attention[0].float().cpu()
            total += log_probability
            if not math.isfinite(total):
                raise self._spoilt()
            if found == END_ID:
                break
            ids.append(found)
            attended.append(attention)
            yield self.bundle.vocabulary.words[found], log_probability, attention
        whole = Hypothesis(ids=tuple(ids), log_probability=total, score=total, attention=torch.stack(attended))
        return to_captions([whole], self.bundle.vocabulary)[0]

    def _spoilt(self) -> BundleError:
        told = "no caption has a finite probability; the weights are spoilt: train again"
        return BundleError(f"{self.bundle.location}: {told}")

    def _encode(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        return self._encoder(stack_pictures(pictures))


def _encoder_precision(asked: AskedPrecision, backbone: str, device: torch.device) -> Precision:
    found = resolve_precision(asked, device, "precision")
    return "fp32" if asked == "auto" and found == "fp16" else encoder_precision(asked, found, backbone)
