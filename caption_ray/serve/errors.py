"""What can go wrong with a request, and the one table from exception to status, code and sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from caption_ray.errors import NotAPictureError, PictureError, TooManyPixelsError
from caption_ray.serve.backend import BackendUnavailableError, OverloadedError
from caption_ray.serve.schemas import ErrorAnswer, ErrorDetail, Limits


class RequestError(Exception):
    """A request that is refused; `limit` is what it went over, if that is it."""

    def __init__(self, message: str, limit: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class MalformedError(RequestError):
    """The request cannot be read: its multipart body is broken, or has parts too few or too many."""


class QueryError(RequestError):
    """A query parameter is unknown, given twice, or not of its kind or range."""


class UnauthorisedError(RequestError):
    """The request has no API key, or one that is not known."""


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""


class DeadlineError(RequestError):
    """The answer was not there in time."""


class TooLargeError(RequestError):
    """A picture, or the whole body, has too many bytes."""


class TooManyPicturesError(RequestError):
    """A batch has too many pictures."""


class ClientGoneError(RequestError):
    """The client hung up; nobody will read the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How an exception is answered. `meaning` is for the documentation."""

    status: int
    code: str
    meaning: str


TABLE: Mapping[type[Exception], Refusal] = {
    MalformedError: Refusal(status=400, code="malformed_request", meaning="The body cannot be read as what it says."),
    QueryError: Refusal(status=400, code="invalid_query", meaning="A query parameter is unknown, repeated or wrong."),
    UnauthorisedError: Refusal(status=401, code="unauthorized", meaning="The API key is missing or not known."),
    BodyTimeoutError: Refusal(status=408, code="body_timeout", meaning="The body did not arrive in time."),
    # Not 408, the client's fault: browsers send it all again at that, by one after another of their open connections.
    DeadlineError: Refusal(status=504, code="deadline_exceeded", meaning="The answer was not there in time."),
    TooLargeError: Refusal(status=413, code="too_large", meaning="A picture, or the whole body, has too many bytes."),
    TooManyPicturesError: Refusal(status=413, code="too_many_pictures", meaning="The batch has too many pictures."),
    NotAPictureError: Refusal(status=415, code="not_a_picture", meaning="The bytes are no picture of a known kind."),
    TooManyPixelsError: Refusal(status=422, code="too_many_pixels", meaning="The picture's header says too many."),
    PictureError: Refusal(status=422, code="undecodable_picture", meaning="The picture is broken."),
    ClientGoneError: Refusal(status=499, code="client_gone", meaning="The client hung up; seen in logs only."),
    OverloadedError: Refusal(status=503, code="overloaded", meaning="Too much to do; try again after Retry-After."),
    BackendUnavailableError: Refusal(
        status=503, code="unavailable", meaning="No model is there to answer; try again after Retry-After."
    ),
}
INTERNAL = Refusal(status=500, code="internal_error", meaning="A fault of the service; the request may be fine.")
NOT_FOUND = Refusal(status=404, code="not_found", meaning="There is nothing at this path.")
METHOD_NOT_ALLOWED = Refusal(status=405, code="method_not_allowed", meaning="The path takes other methods; see Allow.")
_BY_STATUS = {refusal.status: refusal for refusal in (NOT_FOUND, METHOD_NOT_ALLOWED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refusal with its particulars."""

    status: int
    detail: ErrorDetail
    headers: dict[str, str]

    @property
    def answer(self) -> ErrorAnswer:
        """What is said, in the one form that errors have wherever they occur."""
        return ErrorAnswer(error=self.detail)

    def response(self) -> Response:
        """Return the answer as a response of its own."""
        body = self.answer.model_dump_json(exclude_none=True)
        return Response(body, self.status, self.headers, media_type="application/json")


def refuse(error: Exception, limits: Limits, request_id: str) -> Refused:
    """Return how `error` is answered; what is in no table is a fault of ours, of which nothing is told."""
    if isinstance(error, HTTPException):
        return _refuse_http(error, request_id)
    refusal = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)
    headers: dict[str, str] = {}
    limit = getattr(error, "limit", None)
    message = f"{error}"
    if isinstance(error, TooManyPixelsError):
        limit = limits.max_pixels
    elif isinstance(error, UnauthorisedError):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, OverloadedError | BackendUnavailableError):
        wait_s = error.retry_after_s if isinstance(error, OverloadedError) else limits.retry_after_s
        headers["Retry-After"] = str(wait_s)
        message = f"{refusal.meaning.split(';')[0]}; try again in {wait_s} s."
    elif refusal is INTERNAL:
        message = f"{refusal.meaning}"
    detail = ErrorDetail(code=refusal.code, message=_as_sentence(message), limit=limit, request_id=request_id)
    return Refused(status=refusal.status, detail=detail, headers=headers)


def _refuse_http(error: HTTPException, request_id: str) -> Refused:
    """Return the answer to what the router itself refuses."""
    known = _BY_STATUS.get(error.status_code)
    code = known.code if known else HTTPStatus(error.status_code).name.lower()
    message = known.meaning if known else error.detail
    detail = ErrorDetail(code=code, message=_as_sentence(message), request_id=request_id)
    return Refused(status=error.status_code, detail=detail, headers=dict(error.headers or {}))


def _as_sentence(message: str) -> str:
    text = message[:1].upper() + message[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
