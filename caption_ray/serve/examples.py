"""Examples of the API's bodies, checked against its models by the tests."""

import json
from typing import Any

from caption_ray.serve.errors import Refusal
from caption_ray.serve.schemas import Limits

Json = dict[str, Any]
_REQUEST_ID = "0f9c2f0f5c7a4f0f8a40d7f5f4f3a2b1"
_MODEL_ID = "5b1f0c7e3a9d4e62b8f1a7c05d3e9b4420c6d8f7e1a3b5c9d0f2e4a6b8c0d1e3"

CAPTION: Json = {
    "captions": [
        {
            "text": "a dog runs on grass",
            "log_probability": -4.21907,
            "words": [{"text": word} for word in ("a", "dog", "runs", "on", "grass")],
        }
    ],
    "picture": {"width": 500, "height": 375},
    "model_id": _MODEL_ID,
    "timing": {"decode_ms": 2.91, "model_ms": 31.4, "total_ms": 34.77},
}

MODEL: Json = {
    "id": _MODEL_ID,
    "name": "flickr8k",
    "location": "gs://bucket/flickr8k/bundle",
    "loaded_at": "2026-01-31T12:00:00Z",
    "backbone": "resnet50",
    "image_size": 224,
    "grid_side": 7,
    "vocabulary_size": 2550,
    "num_parameters": 29412598,
    "device": "cpu",
    "precision": "bf16",
    "beam_width": 5,
    "max_words": 24,
    "metrics": {"bleu_4": 0.208, "cider": 0.491},
}

_BROKEN: Json = {
    "code": "undecodable_picture",
    "message": "Not a picture that can be decoded (image file is truncated).",
    "request_id": _REQUEST_ID,
}
BATCH: Json = {"results": [{"name": "dog.jpg", "result": CAPTION}, {"name": "half.jpg", "error": _BROKEN}]}

_LOST: Json = {
    "error": {
        "code": "unavailable",
        "message": "No model is there to answer; try again in 1 s.",
        "request_id": _REQUEST_ID,
    }
}
_WORDS = ({"index": 0, "text": "a", "log_probability": -0.31}, {"index": 1, "text": "dog", "log_probability": -0.84})


def _events(*last: tuple[str, Json]) -> str:
    events = (*(("word", word) for word in _WORDS), *last)
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


EVENTS = _events(("caption", CAPTION))
BROKEN_OFF = _events(("error", _LOST))


def error_example(refusal: Refusal, limits: Limits) -> Json:
    """Return the body of an error of this kind."""
    limit = {
        "body_timeout": limits.body_timeout_s,
        "deadline_exceeded": limits.deadline_s,
        "too_large": limits.max_bytes,
        "too_many_pictures": limits.max_pictures,
        "too_many_pixels": limits.max_pixels,
    }.get(refusal.code)
    detail = {"code": refusal.code, "message": refusal.meaning, "request_id": _REQUEST_ID}
    return {"error": detail if limit is None else {**detail, "limit": limit}}
