"""The replica that speaks HTTP and decodes pictures. It never loads torch, and so takes a third of the memory."""

from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caption_ray.errors import UsageError
from caption_ray.serve.access_log import configure_access_log
from caption_ray.serve.app import create_app
from caption_ray.serve.handle import ServeBackend
from caption_ray.serve.metrics import ServiceMetrics
from caption_ray.serve.middleware import KEYS_VARIABLE, api_keys_from_environment
from caption_ray.serve.ray_metrics import RayExporter
from caption_ray.serve.replica_log import log_through_serve
from caption_ray.serve.schemas import Limits


@serve.deployment
@serve.ingress()
class Ingress:
    """Speaks HTTP: checks and decodes pictures, asks a replica, words the answer."""

    def __init__(self, captioner: DeploymentHandle, limits: Limits, keys_expected: bool) -> None:
        log_through_serve()
        configure_access_log()
        self._captioner = captioner
        self._limits = limits
        self._keys_expected = keys_expected

    def __serve_build_asgi_app__(self) -> Starlette:
        """Build the app in the replica's own process; the keys come from its environment and pass through no config."""
        keys = find_api_keys(self._keys_expected)
        backend = ServeBackend(self._captioner, self._limits.retry_after_s)
        metrics = ServiceMetrics(RayExporter())
        app = create_app(backend, self._limits, api_keys=keys, metrics=metrics)
        app.add_middleware(_RequestIdOnce)
        app.add_middleware(_CancelledIsGone)
        return app


class _RequestIdOnce:
    """Leaves X-Request-ID to Serve's proxy, which adds it to every answer and has sent the same along with the request.

    Where the app did not take that over, both are in the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("x-request-id") == Headers(scope=scope).get("x-request-id"):
                    del headers["x-request-id"]
            await send(message)

        await self.app(scope, receive, send_once)


class _CancelledIsGone:
    """Takes a request that Serve cancels for one whose client has gone, which is why Serve does.

    Serve raises the cancelling where the app listens for the client's end, and logs it as the app's failure.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_or_gone() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self.app(scope, receive_or_gone, send)


def find_api_keys(expected: bool) -> list[str]:
    """Return the keys in this process' environment. Raises UsageError where they are expected and not there."""
    keys = api_keys_from_environment()
    if expected and not keys:
        raise UsageError(
            f"an ingress finds no {KEYS_VARIABLE}; set it where Ray is started on each node (before `ray start`, or in "
            "the pod): what is set in the shell of `serve run` does not reach a Ray that runs already"
        )
    return keys
