import json
import re
import socket
import time
from pathlib import Path

import pytest
from live import client_of
from odd_pictures import png
from stand_in import StandIn

from caption_ray.serve.access_log import RequestRecord
from caption_ray.serve.app import create_app
from caption_ray.serve.backend import OverloadedError
from caption_ray.serve.metrics import BatchMetrics, ProcessExporter, ServiceMetrics
from caption_ray.serve.middleware import RecordMiddleware
from caption_ray.serve.schemas import Limits

DASHBOARD = Path(__file__).parents[3] / "gcp" / "grafana-dashboard.json"


def samples(text: str) -> dict[str, float]:
    """Return values by name and labels of Prometheus' text."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_counts_by_hand() -> None:
    with client_of(StandIn()) as client:
        client.post("/v1/captions", content=png())
        client.post("/v1/captions", content=b"text")
        client.post("/v1/captions/batch", files=[("p", png()), ("p", png()), ("p", png()[:60])])
        client.post("/v1/captions/stream", content=png())
        client.request("PROPFIND", "/coffee/1")
        client.get("/v1/captions")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found['caption_ray_captions_total{outcome="ok"}'] == 4
    assert found['caption_ray_captions_total{outcome="not_a_picture"}'] == 1
    assert found['caption_ray_captions_total{outcome="undecodable_picture"}'] == 1
    assert not any("method_not_allowed" in name for name in found if name.startswith("caption_ray_captions"))
    assert found['caption_ray_requests_total{method="POST",route="/v1/captions",status="200"}'] == 1
    assert found['caption_ray_requests_total{method="POST",route="/v1/captions",status="415"}'] == 1
    assert found['caption_ray_requests_total{method="other",route="other",status="404"}'] == 1
    assert found["caption_ray_requests_in_flight"] == 1  # the one that asks
    assert found["caption_ray_decode_seconds_count"] == 4
    assert found["caption_ray_model_seconds_count"] == 3
    assert found["caption_ray_caption_words_sum"] == 4 * 2
    # -3 over two words and the end is -1 each
    assert found["caption_ray_caption_surprise_nats_sum"] == pytest.approx(4)
    assert found['caption_ray_caption_surprise_nats_bucket{le="0.75"}'] == 0
    assert found['caption_ray_caption_surprise_nats_bucket{le="1.0"}'] == 4
    assert found["caption_ray_picture_bytes_count"] == 6
    assert found["caption_ray_picture_pixels_sum"] == 4 * 1200
    assert not any(
        name.startswith("caption_ray_batch") for name in found
    )  # who computes is another process, and tells them itself


@pytest.mark.parametrize(
    ("error", "outcome"), [(RuntimeError("a fault"), "internal_error"), (OverloadedError(1), "overloaded")]
)
def test_failures_count_by_the_pictures_that_got_no_caption(error: Exception, outcome: str) -> None:
    with client_of(StandIn([error, error, error])) as client:
        client.post("/v1/captions", content=png())
        client.post("/v1/captions/stream", content=png())
        client.post("/v1/captions/batch", files=[("p", png())] * 5)
        found = samples(client.get("/metrics").text)
    assert {name: value for name, value in found.items() if name.startswith("caption_ray_captions_total")} == {
        f'caption_ray_captions_total{{outcome="{outcome}"}}': 1 + 1 + 5
    }


def test_stream_that_its_client_leaves_amid_is_counted_as_left() -> None:
    body, backend = png(), StandIn(seconds=0.2)
    outcome = 'caption_ray_captions_total{outcome="client_gone"}'
    with client_of(backend) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            head = f"POST /v1/captions/stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            received = b""
            while b"event: word" not in received:
                received += connection.recv(1 << 16)
        deadline = time.monotonic() + 20
        while outcome not in (found := samples(client.get("/metrics").text)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found[outcome] == 1
        assert "event: caption" in client.post("/v1/captions/stream", content=body).text
        found = samples(client.get("/metrics").text)
    counted = {name: value for name, value in found.items() if name.startswith("caption_ray_captions_total")}
    assert counted == {outcome: 1, 'caption_ray_captions_total{outcome="ok"}': 1}


def test_every_metric_of_the_dashboard_exists() -> None:
    exporter = ProcessExporter()
    with client_of(StandIn(), metrics=ServiceMetrics(exporter)) as client:
        BatchMetrics(exporter).observe(3, 0.5)
        client.post("/v1/captions", content=png())
        found = samples(client.get("/metrics").text)
    assert (found["caption_ray_batch_size_sum"], found["caption_ray_batch_seconds_sum"]) == (3, 0.5)
    known = {name.partition("{")[0] for name in found}
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = {f"caption_ray{name}" for query in queries for name in re.findall(r"\$\{prefix\}(\w+)", query)}
    assert len(queries) >= 10
    assert named - known == set()
    assert not any("caption_ray" in query for query in queries)  # each by what is chosen to stand before it
    (prefix,) = [variable for variable in board["templating"]["list"] if variable["name"] == "prefix"]
    assert prefix["query"] == "with Ray Serve : ray_caption_ray, without : caption_ray"
    # And every metric is on it, but for the parts of histograms.
    families = {family.name for family in exporter.registry.collect()}
    assert {family for family in families if not any(name.startswith(family) for name in named)} == set()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_pictures_that_were_captioned_count_once_though_their_client_goes() -> None:
    metrics = ServiceMetrics()
    recorder = RecordMiddleware(create_app(StandIn()), [], metrics, Limits())
    for num_answered in (1, 1, 0):
        record = RequestRecord("id", "/v1/captions", 200, "client_gone", num_pictures=1, num_answered=num_answered)
        recorder._count(record, "POST")
        found = samples(metrics.text().decode())
        # Where none is left there is nothing to add: Ray's counters take no 0.
        outcome = found.get('caption_ray_captions_total{outcome="client_gone"}')
        assert outcome == (None if num_answered else 1)
