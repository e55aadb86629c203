"""Requests made by schemathesis from the API's own description, good and bad: every answer is one that it describes."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from live import running
from odd_pictures import bad_pictures, good_pictures
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from caption_ray.serve.app import create_app
from caption_ray.serve.local import LocalBackend
from caption_ray.serve.openapi import build_openapi
from caption_ray.serve.schemas import Limits

FILES = [data for data, _ in (*good_pictures().values(), *bad_pictures().values()) if len(data) < 50_000]
BODIES = st.one_of(st.sampled_from(FILES), st.binary(max_size=300))

for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, BODIES)

SCHEMA = schemathesis.openapi.from_dict(build_openapi(Limits()))


@pytest.fixture(scope="module")
def address(local_backend: LocalBackend) -> Iterator[str]:
    with running(create_app(local_backend)) as port:
        yield f"http://127.0.0.1:{port}"


@SCHEMA.parametrize()
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: schemathesis.Case, address: str) -> None:
    # A description cannot say that bytes must be a picture, that one number must not exceed another, or that a form has
    # one part of any name: what is to be accepted and refused is therefore said here.
    unsaid = [positive_data_acceptance, negative_data_rejection]
    answer = case.call_and_validate(base_url=address, excluded_checks=unsaid)
    assert case.meta is not None
    query = case.meta.components.get(ParameterLocation.QUERY)
    if query is not None and query.mode.is_negative:
        # An empty list, or nothing, is no parameter on the wire: what was to be wrong is then not sent.
        is_sent = not any(value is None or value == [] for value in case.query.values())
        assert answer.status_code == 400 or not is_sent
    elif case.meta.generation.mode.is_positive:
        assert answer.status_code in (200, 400, 415, 422)
        assert answer.status_code != 400 or "query parameter 'num_captions': at most the" in answer.text.lower()
