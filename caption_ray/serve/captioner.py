"""One replica of the model on Ray Serve: batches, streams, and a bundle that can be replaced while it answers.

A new bundle is loaded and tried in the background, beside the one that answers, and takes over by one assignment. Not
inside `reconfigure`: while that runs, Serve routes nothing to the replica, so a load of seconds would be an outage of
seconds; and a replica whose `reconfigure` raises is stopped, so a bad bundle would take the good one with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import ParamSpec, TypeVar

from pydantic import Field, ValidationError
from ray import serve

from caption_ray import storage
from caption_ray.bundle import load_bundle, read_manifest
from caption_ray.config import AskedPrecision
from caption_ray.errors import BundleError
from caption_ray.inference import Captioner
from caption_ray.serve.autoscaling import FURTHER_PICTURES
from caption_ray.serve.backend import CaptionedPicture, GreedyWord, OverloadedError, Square
from caption_ray.serve.batching import BatchOptions, MaxQueued
from caption_ray.serve.compute import describe, load_captioner, model_id
from caption_ray.serve.engine import BatchRecord, Engine
from caption_ray.serve.metrics import BatchMetrics
from caption_ray.serve.places import Places
from caption_ray.serve.ray_metrics import RayExporter
from caption_ray.serve.replica_log import log_through_serve
from caption_ray.serve.schemas import ModelAnswer
from caption_ray.serve.siblings import load_as_siblings

logger = logging.getLogger(__name__)
P = ParamSpec("P")
Result = TypeVar("Result")

_TRIES_AFTER_S = (1.0, 5.0, 25.0)
"""When a bundle is read again whose storage failed: else one replica of several would go on with another model."""

_MAX_BATCH_S = 120.0
"""A batch that takes longer will not end: whoever asked for it has been told so long ago."""

_MAX_FAILURES = 3
"""Failed batches and streams in a row at which a replica is unhealthy: a GPU may be beyond repair for its process."""


class CaptionerConfig(BatchOptions):
    """The deployment's `user_config`: all of it changes without a restart, by `serve deploy`."""

    bundle: str | None = Field(
        None, description="The bundle to answer with, a folder or URI; by default that of the application's `args`."
    )
    precision: AskedPrecision = Field(
        "auto", description="Of what is multiplied; 'auto' takes bf16 where that is faster and does no harm."
    )
    max_queued: MaxQueued = Field(
        64,
        description="Pictures that may be in the model or wait for it; Serve counts requests, of which some bring 16. "
        "A batch of more than that is never taken.",
    )


@serve.deployment
class CaptionerReplica:
    """One copy of the model.

    default_bundle: what to answer with where `user_config` names no bundle.  absence: what to say where it does not and
    the default is not there, as was seen before; None where it is.
    """

    def __init__(self, default_bundle: str, absence: str | None = None) -> None:
        log_through_serve()
        self._absence = absence
        self._default_bundle = default_bundle
        self._precision: AskedPrecision = "auto"
        self._engine: Engine | None = None
        self._loaded_at = _now()
        self._refused: str | None = None
        self._swap: asyncio.Task[None] | None = None
        self._asked: tuple[str | None, AskedPrecision] | None = None  # of the swap
        self._metrics = BatchMetrics(RayExporter())
        self._places = Places(CaptionerConfig().max_queued)

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Take over new settings at once, and a new bundle when it has been loaded and verified.

        Raises only before there is a model at all: then Serve says why the deployment has failed.
        """
        try:
            config = CaptionerConfig.model_validate(user_config)
        except ValidationError as error:
            if self._engine is None:
                raise
            self._refuse(f"user_config: {error}")
            return
        self._places.max_pictures = config.max_queued
        if self._engine is None:
            captioner = await self._load_first(config)
            self._engine, self._loaded_at = Engine(captioner, config, self._observe), _now()
            return
        self._engine.options = config
        self._refused, before, self._asked = None, self._asked, (config.bundle, config.precision)
        if self._swap is not None and not self._swap.done() and before == self._asked:
            self._swap = asyncio.create_task(self._look_again(self._swap, config))
            return
        if self._swap is not None:
            self._swap.cancel()  # the newest word counts
        self._swap = asyncio.create_task(self._replace(config))

    # A refusal is an answer here: what is raised, Serve logs with its traceback, for every request of an overload.

    async def caption(
        self, pictures: Sequence[Square], beam_width: int | None
    ) -> list[CaptionedPicture] | OverloadedError:
        """Return each picture's captions, or why they are not computed."""
        try:
            with self._places.taken_by(len(pictures)):
                return await self._running().caption(pictures, beam_width)
        except OverloadedError as refusal:
            return refusal

    async def stream(self, picture: Square) -> AsyncIterator[GreedyWord | CaptionedPicture | OverloadedError]:
        """Yield the greedy caption's words as they are found, and at last the whole; or why there will be none."""
        try:
            with self._places.taken_by(1):
                async for event in self._running().stream(picture):
                    yield event
        except OverloadedError as refusal:
            yield refusal

    async def model(self) -> ModelAnswer:
        """Describe the model that answers now."""
        return describe(self._running().captioner, self._loaded_at, self._refused)

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """Tell Serve what its count of requests leaves out (see autoscaling.py)."""
        return {FURTHER_PICTURES: self._places.num_further}

    async def check_health(self) -> None:
        """Raise where this process will not answer again, so that Serve starts another."""
        if self._engine is None:
            return
        if not self._engine.is_running:
            raise RuntimeError("the thread that computes captions has ended")
        if self._engine.busy_s > _MAX_BATCH_S:
            raise RuntimeError(f"a batch has been computed for {self._engine.busy_s:.0f} s and has not ended")
        if self._engine.num_failures >= _MAX_FAILURES:
            raise RuntimeError(
                f"the last {self._engine.num_failures} batches and streams failed; see the errors before this one"
            )

    def _observe(self, batch: BatchRecord) -> None:
        self._metrics.observe(len(batch.answers), batch.model_s)

    def _running(self) -> Engine:
        assert self._engine is not None, "Serve calls reconfigure before any request"
        return self._engine

    async def _load_first(self, config: CaptionerConfig) -> Captioner:
        """Load the bundle that is asked for, or, where that is refused, what those that have refused it answer with."""
        self._precision = config.precision
        if config.bundle is None:
            if self._absence is not None:
                raise BundleError(self._absence)
            return await _patiently(load_captioner, self._default_bundle, config.precision)
        try:
            return await _patiently(load_captioner, config.bundle, config.precision)
        except Exception as error:  # as in _replace
            try:
                captioner = await load_as_siblings(
                    self._default_bundle, lambda bundle: _patiently(load_captioner, bundle, config.precision)
                )
            except BundleError:
                if self._absence is None:
                    raise
                raise error from None  # there is nothing else to answer with, and nothing else was asked for
            self._refuse(f"{_told(config.bundle, error)}; started with {captioner.bundle.location} instead")
            return captioner

    async def _look_again(self, swap: asyncio.Task[None], config: CaptionerConfig) -> None:
        """Wait for a swap to the same bundle: a second load beside it would only take memory and time from both."""
        try:
            await asyncio.wait([swap])
        except asyncio.CancelledError:
            swap.cancel()
            raise
        self._refused = None
        await self._replace(config)

    async def _replace(self, config: CaptionerConfig) -> None:
        engine, bundle = self._running(), config.bundle or self._default_bundle
        try:
            bundle = storage.absolute(bundle)
            # By digest, not by name: a run trained anew leaves its bundle where the old one was.
            manifest = await _patiently(read_manifest, bundle)
            if (manifest.digest, config.precision) == (model_id(engine.captioner), self._precision):
                if bundle != engine.captioner.bundle.location:
                    # The same, but where it was before there may be another by and by.
                    await _patiently(load_bundle, bundle)
                    engine.captioner.bundle = replace(engine.captioner.bundle, location=bundle)
                return
            captioner = await _patiently(load_captioner, bundle, config.precision)
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self._refuse(_told(bundle, error))
            return
        engine.captioner, self._precision, self._loaded_at = captioner, config.precision, _now()
        logger.info("now answering with %s (%s)", captioner.bundle.location, model_id(captioner))

    def _refuse(self, reason: str) -> None:
        self._refused = reason
        logger.error("refused: %s", reason)

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is not None:
            self._running().close()


def _told(bundle: str, error: Exception) -> str:
    """Return what is wrong with a bundle, which is named: storage, for one, says what it refuses and not to whom."""
    reason = str(error) or type(error).__name__
    return reason if bundle in reason else f"{bundle}: {reason}"


async def _patiently(call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Return the result of a call in a thread, made again a few times where it raises OSError: storage has failed."""
    for wait_s in _TRIES_AFTER_S:
        try:
            return await asyncio.to_thread(call, *args, **kwargs)
        except OSError as error:
            logger.warning("%s; trying again in %g s", error, wait_s)
        await asyncio.sleep(wait_s)
    return await asyncio.to_thread(call, *args, **kwargs)


def _now() -> datetime:
    return datetime.now(timezone.utc)
