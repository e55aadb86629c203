"""From sent pictures to answers: decoding, the backend, a second try where a replica has died, and counting."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import numpy.typing as npt

from caption_ray.caption import Caption
from caption_ray.errors import PictureError
from caption_ray.serve.access_log import RequestRecord
from caption_ray.serve.backend import BackendUnavailableError, CaptionBackend, CaptionedPicture
from caption_ray.serve.errors import QueryError, TooLargeError, refuse
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.model_lookup import ModelLookup
from caption_ray.serve.pictures import DecodedPicture, PictureDecoder
from caption_ray.serve.reading import SentPicture
from caption_ray.serve.retrying import spoken_twice, twice
from caption_ray.serve.schemas import (
    BatchItem,
    CaptionAnswer,
    CaptionRequest,
    Limits,
    PictureAnswer,
    StreamWord,
    Timing,
    Word,
)


class CaptionService:
    """What the routes do, without HTTP. model: describes the model that answers."""

    def __init__(
        self, backend: CaptionBackend, decoder: PictureDecoder, limits: Limits, metrics: ServiceMetrics
    ) -> None:
        self._backend, self._decoder, self._limits, self._metrics = backend, decoder, limits, metrics
        self.model = ModelLookup(backend, metrics.retries)

    async def check(self, query: CaptionRequest) -> None:
        """Raise QueryError where more captions are asked for than the model's own beam is wide."""
        if query.beam_width is None and query.num_captions > 1:
            width = (await self.model.recently()).beam_width
            if query.num_captions > width:
                raise QueryError(
                    f"query parameter 'num_captions': at most the model's beam_width of {width}, where none is given",
                    width,
                )

    async def decode(self, sent: SentPicture, record: RequestRecord) -> DecodedPicture:
        """Return the picture as the model takes it. Raises PictureError, TooLargeError, OverloadedError."""
        if sent.data is None:
            limit = self._limits.max_bytes
            raise TooLargeError(f"the picture has more than {limit:,} bytes", limit)
        record.picture_bytes += len(sent.data)
        self._metrics.picture_bytes.observe(len(sent.data))
        model = await self.model.recently()
        decoded = await self._decoder.decode(sent.data, model.image_size)
        num_pixels = decoded.size.width * decoded.size.height
        record.picture_pixels += num_pixels
        self._metrics.picture_pixels.observe(num_pixels)
        self._metrics.decode_seconds.observe(decoded.seconds)
        return decoded

    async def caption(
        self, pictures: Sequence[DecodedPicture], query: CaptionRequest, record: RequestRecord, started: float
    ) -> list[PictureAnswer]:
        """Return the answers for decoded pictures; `started` is when their body had arrived."""
        if not pictures:
            return []
        before = time.perf_counter()
        found = await self._captioned([picture.square for picture in pictures], query.beam_width)
        model_s = time.perf_counter() - before
        self._metrics.model_seconds.observe(model_s)
        return [
            self._answer(decoded, captioned, query, model_s, record, started)
            for decoded, captioned in zip(pictures, found, strict=True)
        ]

    async def _captioned(self, squares: list[npt.NDArray[np.uint8]], width: int | None) -> list[CaptionedPicture]:
        return await twice(lambda: self._backend.caption(squares, width), self._metrics.retries)

    async def decode_all(
        self, sent: Sequence[SentPicture], record: RequestRecord
    ) -> list[DecodedPicture | PictureError | TooLargeError]:
        """Return each picture decoded, or what is wrong with it.

        Raises OverloadedError, and BackendUnavailableError; the others are not decoded then.
        """
        tasks = [asyncio.ensure_future(self._try_decode(picture, record)) for picture in sent]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def batch(
        self,
        names: Sequence[str | None],
        decoded: Sequence[DecodedPicture | PictureError | TooLargeError],
        query: CaptionRequest,
        record: RequestRecord,
        started: float,
    ) -> list[BatchItem]:
        """Return each picture's result or error, in order."""
        good = [picture for picture in decoded if isinstance(picture, DecodedPicture)]
        answers = iter(await self.caption(good, query, record, started))
        items = []
        for name, outcome in zip(names, decoded, strict=True):
            if isinstance(outcome, DecodedPicture):
                items.append(BatchItem(name=name, result=next(answers)))
            else:
                detail = refuse(outcome, self._limits, record.request_id).detail
                self._metrics.captions.labels(detail.code).inc()
                record.num_answered += 1
                items.append(BatchItem(name=name, error=detail))
        return items

    async def _try_decode(
        self, sent: SentPicture, record: RequestRecord
    ) -> DecodedPicture | PictureError | TooLargeError:
        try:
            return await self.decode(sent, record)
        except (PictureError, TooLargeError) as error:
            # Its frames hold the picture's bytes, which nobody would account for while the others are captioned.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    async def stream(
        self, picture: DecodedPicture, query: CaptionRequest, record: RequestRecord, started: float
    ) -> AsyncGenerator[StreamWord | PictureAnswer, None]:
        """Yield words as they are found, and at last the answer."""
        before = time.perf_counter()
        index = 0
        async with aclosing(spoken_twice(self._backend, picture.square, self._metrics.retries)) as spoken:
            async for item in spoken:
                if isinstance(item, CaptionedPicture):
                    model_s = time.perf_counter() - before
                    self._metrics.model_seconds.observe(model_s)
                    yield self._answer(picture, item, query, model_s, record, started)
                    return
                attention = _grid(item.attention) if query.attention else None
                yield StreamWord(index=index, text=item.text, log_probability=item.log_probability, attention=attention)
                index += 1
        raise BackendUnavailableError

    def _answer(
        self,
        decoded: DecodedPicture,
        captioned: CaptionedPicture,
        query: CaptionRequest,
        model_s: float,
        record: RequestRecord,
        started: float,
    ) -> PictureAnswer:
        self._metrics.observe_caption(captioned.captions[0])
        record.num_answered += 1
        record.model_id = captioned.model_id
        return PictureAnswer(
            captions=[to_answer(caption, query.attention) for caption in captioned.captions[: query.num_captions]],
            picture=decoded.size,
            model_id=captioned.model_id,
            timing=Timing(
                decode_ms=_ms(decoded.seconds), model_ms=_ms(model_s), total_ms=_ms(time.perf_counter() - started)
            ),
        )


def to_answer(caption: Caption, with_attention: bool) -> CaptionAnswer:
    """Return a caption as the API says it."""
    grids = [_grid(cells) if with_attention else None for cells in caption.attention]
    words = [Word(text=text, attention=grid) for text, grid in zip(caption.words, grids, strict=True)]
    return CaptionAnswer(text=caption.text, log_probability=round(caption.log_probability, 5), words=words)


def _grid(attention: npt.NDArray[np.float32]) -> list[list[float]]:
    """Return (side, side) as rows, to five places: a third of the bytes of all places."""
    rows: list[list[float]] = np.round(attention.astype(np.float64), 5).tolist()
    return rows


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
