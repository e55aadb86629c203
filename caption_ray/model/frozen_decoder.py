"""A decoder whose weights stay as they are: laid out once for all searches, not at the start of each."""

import functools

import torch
from torch import Tensor

from caption_ray.model.arithmetic import Product
from caption_ray.model.decoder import Decoder
from caption_ray.model.decoder_state import DecoderState, PictureContext
from caption_ray.model.fused_product import RoundedProduct, product_kernel


class FrozenDecoder:
    """What a search needs of a decoder (`decoding.StepDecoder`).

    rounded: have products, but for the projection of features, round what they multiply to bf16, where that is faster
    (see fused_product.py). Elsewhere it counts for nothing.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, rounded: bool = False) -> None:
        self._decoder = decoder
        self.step = decoder.step
        weights = decoder.split_weights()
        others = (decoder.attention.key, decoder.initial_state, decoder.output)
        kernel = product_kernel(*weights, *(part.weight for part in others)) if rounded else None
        make = Product if kernel is None else functools.partial(RoundedProduct, kernel)
        products = decoder.step_products(make)
        self._products = products._replace(words=products.word(decoder.embedding.weight))
        self._beforehand = None
        if kernel is not None:
            gates = None
            if not decoder.config.deep_output:  # which wants the contexts themselves
                # Values of all regions are multiplied sooner than the weights are read again at every step.
                gates, self._products = products.context, self._products._replace(context=None)
            key, first = decoder.attention.key, decoder.initial_state
            self._beforehand = (make(key.weight, key.bias), gates, make(first.weight, first.bias))

    def start(self, features: Tensor) -> tuple[PictureContext, DecoderState]:
        """Do as `Decoder.start`."""
        if self._beforehand is None:
            context, first = self._decoder.prepare(features)
        else:
            to_keys, to_gates, to_first = self._beforehand
            values = self._decoder.values(features)
            context = PictureContext(to_keys(values), to_gates(values) if to_gates else values)
            first = self._decoder.first_state(values, to_first)
        return self._decoder.lay_out(context, self._products), first
