"""The API's description, OpenAPI 3.1, made from the models of its bodies and the table of its errors."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import caption_ray
from caption_ray.serve.errors import INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, TABLE, ClientGoneError
from caption_ray.serve.examples import BATCH, BROKEN_OFF, CAPTION, EVENTS, MODEL, error_example
from caption_ray.serve.schemas import (
    BatchAnswer,
    CaptionRequest,
    ErrorAnswer,
    HealthAnswer,
    Limits,
    ModelAnswer,
    PictureAnswer,
    StreamWord,
)

Json = dict[str, Any]
_MODELS = (PictureAnswer, BatchAnswer, StreamWord, ModelAnswer, HealthAnswer, ErrorAnswer)
_REFUSALS = tuple(refusal for kind, refusal in TABLE.items() if kind is not ClientGoneError)
_REF = "#/components/schemas/{model}"


def build_openapi(limits: Limits) -> Json:
    """Return the document of a service with these limits."""
    _, schemas = models_json_schema([(model, "serialization") for model in _MODELS], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "caption_ray",
            "version": caption_ray.__version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "Describes pictures in an English sentence. Pictures are sent as files, never as URLs; "
            f"{limits.max_bytes:,} bytes and {limits.max_pixels:,} pixels at most, of any kind that is a picture by "
            "its content: BMP, GIF, JPEG, PNG, PPM, TIFF, WebP; the first frame counts.",
        },
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "tags": [{"name": "captions"}, {"name": "model"}, {"name": "operation"}],
        "paths": {
            "/v1/captions": {"post": _caption_operation(limits)},
            "/v1/captions/batch": {"post": _batch_operation(limits)},
            "/v1/captions/stream": {"post": _stream_operation(limits)},
            "/v1/model": {
                "get": _operation("describeModel", "model", "Describe the model that answers", ModelAnswer, MODEL)
            },
            "/healthz": {
                "get": _open(
                    _operation("isAlive", "operation", "Tell whether it lives", HealthAnswer, {"status": "ok"})
                )
            },
            "/readyz": {
                "get": _open(
                    _operation("isReady", "operation", "Tell whether it can answer", HealthAnswer, {"status": "ready"})
                )
            },
            "/metrics": {"get": _metrics_operation()},
        },
        "components": {
            "schemas": schemas["$defs"],
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Where the service has API keys."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
            },
            "responses": dict(_error_responses(limits)),
        },
    }


_HEADERS: Json = {
    "X-Request-ID": {
        "description": "Names the request in the log; that of the request if it was sane.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "Allow": {"description": "Methods that the path takes.", "schema": {"type": "string"}},
}
_HEADERS_OF = {401: ("WWW-Authenticate",), 405: ("Allow",), 503: ("Retry-After",)}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}


def _error_responses(limits: Limits) -> Iterable[tuple[str, Json]]:
    """Yield name and response of every status that is not a success, an example for each code."""
    refusals = (*_REFUSALS, NOT_FOUND, METHOD_NOT_ALLOWED, INTERNAL)
    for status in sorted({refusal.status for refusal in refusals}):
        here = [refusal for refusal in refusals if refusal.status == status]
        yield (
            f"Error{status}",
            {
                "description": " ".join(f"`{refusal.code}`: {refusal.meaning}" for refusal in here),
                "headers": _headers(*_HEADERS_OF.get(status, ())),
                "content": {
                    "application/json": {
                        "schema": _reference(ErrorAnswer),
                        "examples": {refusal.code: {"value": error_example(refusal, limits)} for refusal in here},
                    }
                },
            },
        )


def _errors(*statuses: int) -> Json:
    return {str(status): {"$ref": f"#/components/responses/Error{status}"} for status in statuses}


def _operation(
    name: str, tag: str, summary: str, model: type[BaseModel], example: object, errors: Sequence[int] = ()
) -> Json:
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": {
            "200": {
                "description": "Done.",
                "headers": _headers(),
                "content": {"application/json": {"schema": _reference(model), "example": example}},
            },
            **_errors(*(errors or (400, 401, 405, 500, 503, 504))),
        },
    }


def _open(operation: Json) -> Json:
    """Return an operation for which no key is needed."""
    del operation["responses"]["401"]
    return {**operation, "security": []}


# OpenAPI 3.1 has no word for a stream's parts; the schema is that of one event.
_EVENT: Json = {
    "type": "object",
    "properties": {
        "event": {"enum": ["word", "caption", "error"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"anyOf": [_reference(model) for model in (StreamWord, PictureAnswer, ErrorAnswer)]},
        },
    },
    "required": ["event", "data"],
}
_PICTURE_ERRORS = (400, 401, 405, 408, 413, 415, 422, 500, 503, 504)


def _query(limits: Limits, names: Iterable[str]) -> list[Json]:
    schema = CaptionRequest.model_json_schema()["properties"]
    parameters = []
    for name in names:
        field = {key: value for key, value in schema[name].items() if key not in ("title", "anyOf", "default")}
        description = field.pop("description")
        if name == "beam_width":
            width: Json = next(kind for kind in schema[name]["anyOf"] if kind["type"] == "integer")
            field = {**width, "maximum": limits.max_beam_width}
        elif schema[name].get("default") is not None:
            field["default"] = schema[name]["default"]
        parameters.append({"name": name, "in": "query", "description": description, "schema": field})
    return parameters


def _raw(limits: Limits) -> Json:
    return {"schema": {"type": "string", "format": "binary", "maxLength": limits.max_bytes}}


def _one_picture(limits: Limits) -> Json:
    part = {"type": "object", "properties": {"picture": {"type": "string", "format": "binary"}}}
    return {
        "required": True,
        "description": "The file as it is, or as the one part of a form. What it is, is decided by its content.",
        "content": {
            "image/*": _raw(limits),
            "application/octet-stream": _raw(limits),
            "multipart/form-data": {"schema": {**part, "required": ["picture"], "additionalProperties": False}},
        },
    }


def _caption_operation(limits: Limits) -> Json:
    operation = _operation(
        "captionPicture", "captions", "Caption one picture", PictureAnswer, CAPTION, errors=_PICTURE_ERRORS
    )
    return {
        **operation,
        "parameters": _query(limits, ("beam_width", "num_captions", "attention")),
        "requestBody": _one_picture(limits),
    }


def _batch_operation(limits: Limits) -> Json:
    operation = _operation(
        "captionPictures", "captions", f"Caption up to {limits.max_pictures} pictures", BatchAnswer, BATCH,
        errors=(400, 401, 405, 408, 413, 500, 503, 504),
    )  # fmt: skip
    pictures = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.max_pictures,
    }
    return {
        **operation,
        "description": "Each picture has a result or an error of its own; one that is broken costs the others nothing.",
        "parameters": _query(limits, ("beam_width", "num_captions", "attention")),
        "requestBody": {
            "required": True,
            "description": "A part for each picture; the parts' names do not matter.",
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"pictures": pictures},
                        "required": ["pictures"],
                        "additionalProperties": False,
                    }
                }
            },
        },
    }


def _stream_operation(limits: Limits) -> Json:
    operation = _operation(
        "streamCaption", "captions", "Caption one picture, a word at a time", PictureAnswer, None,
        errors=_PICTURE_ERRORS,
    )  # fmt: skip
    operation["responses"]["200"]["content"] = {
        "text/event-stream": {
            "schema": _EVENT,
            "examples": {"events": {"value": EVENTS}, "broken_off": {"value": BROKEN_OFF}},
        }
    }
    return {
        **operation,
        "description": "Server-sent events: `word` (StreamWord) as greedy decoding finds it, then `caption` "
        "(PictureAnswer); `error` (ErrorAnswer) if it fails half-way.",
        "parameters": _query(limits, ("attention",)),
        "requestBody": _one_picture(limits),
    }


def _metrics_operation() -> Json:
    operation = _operation("metrics", "operation", "Tell Prometheus", HealthAnswer, None, errors=(401, 405, 500))
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return {**operation, "description": "Of a service on Ray: where Ray exports the figures of all its processes."}
