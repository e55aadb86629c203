"""What a replica starts with where the bundle that it is told of is bad: what its siblings answer with, if it has any.

They had a good one when that was refused, and not necessarily the one that the application was started with. A replica
that took the latter would be another model under the same address.
"""

import logging
from collections.abc import Awaitable, Callable

from ray import serve

from caption_ray.inference import Captioner
from caption_ray.serve.compute import model_id
from caption_ray.serve.handle import ServeBackend
from caption_ray.serve.schemas import ModelAnswer

logger = logging.getLogger(__name__)


_TIMES_ASKED = 3
"""How often others are asked before there are none: under overload, which starts replicas, they may have no time."""


async def load_as_siblings(default_bundle: str, load: Callable[[str], Awaitable[Captioner]]) -> Captioner:
    """Load what another replica answers with, or the default where there is none, or its bundle is there no more.

    Raises BundleError where the default cannot be loaded either; OSError where storage has failed: with the default it
    would be another model than its siblings for as long as they live.
    """
    sibling = await _describe_sibling()
    if sibling is not None:
        try:
            captioner = await load(sibling.location)
            if model_id(captioner) == sibling.id:
                return captioner
            logger.error("%s is no longer the bundle %s of the other replicas", sibling.location, sibling.id)
        except Exception as error:  # whatever is wrong with it, there is the default
            if isinstance(error, OSError) and not isinstance(error, PermissionError):
                raise
            logger.error("the other replicas' bundle cannot be loaded: %s", error)
    return await load(default_bundle)


async def _describe_sibling() -> ModelAnswer | None:
    """Ask any other replica of this deployment; one that is starting is not among those that are asked."""
    here = serve.get_replica_context()
    siblings = ServeBackend(serve.get_deployment_handle(here.deployment, here.app_name))
    for _ in range(_TIMES_ASKED):
        try:
            return await siblings.model()
        except Exception as error:  # noqa: PERF203 - a few seconds each
            logger.info("no other replica says what it answers with (%s)", error or type(error).__name__)
    return None
