"""One line of JSON for each request; never a picture's content, a file's name or a key."""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone

from starlette.types import Scope

access_log = logging.getLogger("caption_ray.serve.access")

_RECORD = "caption_ray.record"


def configure_access_log() -> None:
    """Send the lines to stderr as they are, JSON and nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.handlers[:] = [handler]
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
    for name in ("python_multipart", "PIL"):  # what they say is of what clients send, and the answer says it too
        logging.getLogger(name).setLevel(logging.CRITICAL)


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request for its line in the log."""

    request_id: str
    route: str = "other"
    status: int = 0
    code: str | None = None
    num_pictures: int = 0
    num_answered: int = 0  # with captions, or an error of their own in a batch
    picture_bytes: int = 0
    picture_pixels: int = 0
    model_id: str | None = None
    started: float = field(default_factory=time.perf_counter)

    def line(self, method: str) -> str:
        """Return the line, JSON."""
        return json.dumps(
            {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "event": "request",
                "request_id": self.request_id,
                "method": method,
                "route": self.route,
                "status": self.status,
                "code": self.code,
                "ms": round((time.perf_counter() - self.started) * 1000, 2),
                "pictures": self.num_pictures,
                "picture_bytes": self.picture_bytes,
                "picture_pixels": self.picture_pixels,
                "model_id": self.model_id,
            }
        )


def keep_record(scope: Scope, record: RequestRecord) -> None:
    """Attach the record to its request."""
    scope[_RECORD] = record


def record_of(scope: Scope) -> RequestRecord:
    """Return the record of a request that came through the middleware."""
    record: RequestRecord = scope[_RECORD]
    return record
