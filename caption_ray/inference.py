"""From pictures, as bytes, to captions and attention maps, with a bundle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from caption_ray.bundle import Bundle, load_bundle
from caption_ray.config import DecodeOptions
from caption_ray.data import images
from caption_ray.device import pick_device
from caption_ray.model.decoding import Hypothesis, beam_search, greedy_steps
from caption_ray.special_ids import END_ID
from caption_ray.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One caption of a picture.

    words: without markers.  log_probability: natural logarithm, of the words and the end.
    attention: (T, side, side), for each word the share of attention on each cell; each map sums to 1.
    """

    words: tuple[str, ...]
    log_probability: float
    attention: npt.NDArray[np.float32]

    @property
    def text(self) -> str:
        """The words as a sentence."""
        return " ".join(self.words)


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
    """A model ready to caption pictures; holds its own copy on one device."""

    def __init__(self, bundle: Bundle, device: torch.device | None = None) -> None:
        self.bundle = bundle
        self.device = device or pick_device()
        self.model = bundle.model.to(self.device).eval()

    @classmethod
    def load(cls, location: str, device: torch.device | None = None) -> "Captioner":
        """Load a bundle from a folder or URI. Raises BundleError."""
        return cls(load_bundle(location), device)

    def decode_picture(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Return the picture in `data` as the model wants it. Raises PictureError."""
        return images.decode_square(data, self.bundle.config.encoder.image_size)

    def caption(
        self, pictures: Sequence[npt.NDArray[np.uint8]], options: DecodeOptions | None = None
    ) -> list[list[Caption]]:
        """Return for each picture (from `decode_picture`) its captions, best first; at least one each."""
        if not pictures:
            return []
        found = beam_search(self.model.decoder, self._encode(pictures), options or self.bundle.config.decode)
        return [to_captions(hypotheses, self.bundle.vocabulary) for hypotheses in found]

    def caption_picture(self, picture: Image.Image, options: DecodeOptions | None = None) -> list[Caption]:
        """Return the captions of one opened RGB picture, best first; at least one."""
        return self.caption([images.to_square(picture, self.bundle.config.encoder.image_size)], options)[0]

    def stream(self, picture: npt.NDArray[np.uint8], max_words: int) -> Iterator[tuple[str, float, Tensor]]:
        """Yield the greedy caption's words as they are found: word, its log-probability, attention (R,)."""
        for word in greedy_steps(self.model.decoder, self._encode([picture]), max_words):
            if int(word.ids[0]) == END_ID:
                return
            text = self.bundle.vocabulary.words[int(word.ids[0])]
            yield text, float(word.log_probability[0]), word.attention[0].float().cpu()

    @torch.inference_mode()
    def _encode(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        return self.model.features(images.stack_pictures(pictures).to(self.device))
