"""Encoder and decoder together."""

from collections.abc import Sequence

from torch import Tensor, nn

from caption_ray.model.decoder import Decoder, TeacherForcing
from caption_ray.model.encoder import Encoder


class CaptionModel(nn.Module):
    """Pictures to captions. With `encoder` None the pictures given are already region features (cached ones)."""

    def __init__(self, encoder: Encoder | None, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def features(self, pictures: Tensor) -> Tensor:
        """Return (P, R, F) region features of (P, 3, S, S) uint8 pictures, or `pictures` if they are features."""
        if self.encoder is None:
            return pictures
        features: Tensor = self.encoder(pictures)
        return features

    def forward(self, pictures: Tensor, ids: Tensor, lengths: Sequence[int], picture_index: Tensor) -> TeacherForcing:
        """Run a training pass; arguments after `pictures` as for `Decoder.forward`."""
        result: TeacherForcing = self.decoder(self.features(pictures), ids, lengths, picture_index)
        return result
