"""Reading what a request sends, within limits of size and time, and no more of it than is allowed."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from caption_ray.serve.backend import OverloadedError
from caption_ray.serve.errors import (
    BodyTimeoutError,
    ClientGoneError,
    MalformedError,
    QueryError,
    TooLargeError,
    TooManyPicturesError,
)
from caption_ray.serve.schemas import CaptionRequest, Limits

_PART_OVERHEAD = 16 << 10
"""Bytes of boundaries and headers that a part may have, at most."""

_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture's file as it was sent; `data` is None where it was over the limit, and has been thrown away."""

    name: str | None
    data: bytes | None


class BufferBudget:
    """Bounds the bytes of bodies that all requests together hold in memory."""

    def __init__(self, max_bytes: int, retry_after_s: int) -> None:
        self._free = max_bytes
        self._retry_after_s = retry_after_s

    @contextmanager
    def share(self) -> Iterator["BufferShare"]:
        """Lend a request what it takes while it has it. Taking raises OverloadedError where too little is left."""
        share = BufferShare(self)
        try:
            yield share
        finally:
            self._free += share.taken

    def take(self, num_bytes: int) -> None:
        """Lend bytes."""
        if num_bytes > self._free:
            raise OverloadedError(self._retry_after_s)
        self._free -= num_bytes


class BufferShare:
    """What one request holds of the budget."""

    def __init__(self, budget: BufferBudget) -> None:
        self._budget = budget
        self.taken = 0

    def take(self, num_bytes: int) -> None:
        """Take more. Raises OverloadedError."""
        self._budget.take(num_bytes)
        self.taken += num_bytes


def parse_query(request: Request, limits: Limits, allowed: frozenset[str]) -> CaptionRequest:
    """Return the query's parameters. Raises QueryError naming the one that is wrong."""
    given: dict[str, object] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise QueryError(f"query parameter {name!r}: given twice")
        if name not in allowed:
            raise QueryError(f"query parameter {name[:40]!r}: not one of {', '.join(sorted(allowed)) or 'any here'}")
        # Numbers and truth values as JSON writes them, nothing else that Python would take for one.
        given[name] = value == "true" if value in ("true", "false") else value
        if re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
            given[name] = int(value)
    width = given.get("beam_width")
    if isinstance(width, int) and width > limits.max_beam_width:  # which may be less than any service's
        raise QueryError(f"query parameter 'beam_width': at most {limits.max_beam_width}", limits.max_beam_width)
    try:
        query = CaptionRequest.model_validate(given, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        bound = first.get("ctx", {}).get("le", first.get("ctx", {}).get("ge"))
        rule = "should be true or false" if first["type"].startswith("bool") else first["msg"]
        raise QueryError(f"query parameter {first['loc'][0]!r}: {rule}", bound) from error
    if query.beam_width is not None and query.num_captions > query.beam_width:
        raise QueryError(
            f"query parameter 'num_captions': at most the beam_width of {query.beam_width}", query.beam_width
        )
    return query


async def read_picture(request: Request, limits: Limits, share: BufferShare) -> SentPicture:
    """Return the one picture of a request: its raw body, whatever its type says, or the one part of a multipart body.

    Raises TooLargeError as soon as there is a byte too many, BodyTimeoutError, MalformedError, OverloadedError, and
    ClientGoneError.
    """
    boundary = _boundary(request)
    if boundary is None:
        chunks = [chunk async for chunk in _Body(request, limits, limits.max_bytes, share)]
        return SentPicture(None, b"".join(chunks))
    collector = _Parts(limits.max_bytes, max_parts=1, too_many=MalformedError("one picture is expected, not several"))
    body = _Body(request, limits, limits.max_bytes + _PART_OVERHEAD, share)
    (picture,) = await _parse_parts(boundary, body, collector)
    return picture


async def read_pictures(request: Request, limits: Limits, share: BufferShare) -> list[SentPicture]:
    """Return the pictures of a multipart body, at least one, in order. Raises as `read_picture`."""
    boundary = _boundary(request)
    if boundary is None:
        raise MalformedError("a batch is sent as multipart/form-data, a part for each picture")
    too_many = TooManyPicturesError(f"a batch has at most {limits.max_pictures} pictures", limits.max_pictures)
    collector = _Parts(limits.max_bytes, limits.max_pictures, too_many)
    body = _Body(request, limits, largest_body(limits), share)
    return await _parse_parts(boundary, body, collector)


def largest_body(limits: Limits) -> int:
    """Return how many bytes a request's body may have: a batch of as many and as large pictures as there may be."""
    return limits.max_pictures * (limits.max_bytes + _PART_OVERHEAD)


def _boundary(request: Request) -> bytes | None:
    """Return the boundary of a multipart body, None where the body is raw."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() != b"multipart/form-data":
        return None
    if not options.get(b"boundary"):
        raise MalformedError("multipart/form-data without a boundary in Content-Type")
    return options[b"boundary"]


class _Body:
    """The chunks of a request's body, within limits of bytes and, in all, of time."""

    def __init__(self, request: Request, limits: Limits, max_bytes: int, share: BufferShare) -> None:
        self._request, self._limits, self._max_bytes, self._share = request, limits, max_bytes, share

    async def __aiter__(self) -> AsyncIterator[bytes]:
        too_large = TooLargeError(f"the body has more than {self._max_bytes:,} bytes", self._max_bytes)
        declared = self._request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            raise too_large
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.body_timeout_s
        num_bytes, more = 0, True
        while more:
            try:
                message = await asyncio.wait_for(self._request.receive(), max(end - loop.time(), 0.0))
            except asyncio.TimeoutError as error:
                limit = self._limits.body_timeout_s
                raise BodyTimeoutError(f"the body took longer than {limit:g} s", limit) from error
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client hung up before its body's end")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            num_bytes += len(chunk)
            if num_bytes > self._max_bytes:
                raise too_large
            self._share.take(len(chunk))
            yield chunk


class _Parts:
    """Takes in the parts of a multipart body as its parser finds them."""

    def __init__(self, max_bytes: int, max_parts: int, too_many: Exception) -> None:
        self.pictures: list[SentPicture] = []
        self.ended = False
        self._max_bytes, self._max_parts, self._too_many = max_bytes, max_parts, too_many
        self._data: bytearray | None = None
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> Mapping[str, object]:
        """Return what the parser calls."""
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        if len(self.pictures) == self._max_parts:
            raise self._too_many
        self._data, self._headers = bytearray(), {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            if len(self._data) + end - start > self._max_bytes:
                self._data = None
            else:
                self._data += data[start:end]

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename", b"").decode("utf-8", "replace")[:_MAX_NAME]
        self.pictures.append(SentPicture(name or None, None if self._data is None else bytes(self._data)))
        self._data = None

    def on_end(self) -> None:
        self.ended = True


async def _parse_parts(boundary: bytes, body: _Body, parts: _Parts) -> list[SentPicture]:
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for chunk in body:
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedError(f"the multipart body cannot be read: {error}") from error
    if not parts.ended:
        raise MalformedError("the multipart body ends before its closing boundary")
    if not parts.pictures:
        raise MalformedError("the multipart body has no parts")
    return parts.pictures
