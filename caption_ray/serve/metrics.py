"""What is counted and measured of a service, whoever exports it: this process itself, or Ray for all of its own."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from caption_ray.caption import Caption

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counts(Protocol):
    """A counter, or a series of it."""

    def labels(self, *values: str) -> "Counts":
        """Return the series with these values of the labels."""

    def inc(self, amount: float = 1) -> None:
        """Add."""


class Level(Protocol):
    """A number that goes up and down."""

    def inc(self, amount: float = 1) -> None:
        """Add."""

    def dec(self, amount: float = 1) -> None:
        """Take away."""


class Distribution(Protocol):
    """A histogram, or a series of it."""

    def labels(self, *values: str) -> "Distribution":
        """Return the series with these values of the labels."""

    def observe(self, amount: float) -> None:
        """Take in a value."""


class Exporter(Protocol):
    """Makes what counts and measures, and knows where it is read."""

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counts:
        """Return a counter; it is exported under its name and `_total`."""

    def gauge(self, name: str, meaning: str) -> Level:
        """Return a gauge."""

    def histogram(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Distribution:
        """Return a histogram with these upper bounds."""

    def text(self) -> bytes:
        """Return what GET /metrics answers, in Prometheus' text format."""


class ProcessExporter:
    """Exports by GET /metrics what this process has done, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counts:
        """See Exporter."""
        return Counter(name, meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str) -> Level:
        """See Exporter."""
        return Gauge(name, meaning, registry=self.registry)

    def histogram(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Distribution:
        """See Exporter."""
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """See Exporter."""
        return generate_latest(self.registry)


class ServiceMetrics:
    """Counters and histograms of one app. exporter: by default the process' own."""

    def __init__(self, exporter: Exporter | None = None) -> None:
        made = self.exporter = exporter or ProcessExporter()
        self.requests = made.counter("caption_ray_requests", "Requests answered.", ("route", "method", "status"))
        self.request_seconds = made.histogram(
            "caption_ray_request_seconds", "From the request's head to the answer's end.", _SECONDS, ("route",)
        )
        self.in_flight = made.gauge("caption_ray_requests_in_flight", "Requests being answered now.")
        self.captions = made.counter(
            "caption_ray_captions", "Pictures by outcome: ok, or the error's code.", ("outcome",)
        )
        self.decode_seconds = made.histogram(
            "caption_ray_decode_seconds", "A picture's file to the model's input.", _SECONDS
        )
        self.model_seconds = made.histogram(
            "caption_ray_model_seconds", "In the model, waiting for a batch included.", _SECONDS
        )
        self.caption_words = made.histogram(
            "caption_ray_caption_words",
            "Words of the best caption.",
            (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32),
        )
        self.surprise = made.histogram(
            "caption_ray_caption_surprise_nats",
            "Minus the mean log-probability of a caption's words and end; high where pictures are unlike training's.",
            (0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5),
        )
        self.picture_bytes = made.histogram(
            "caption_ray_picture_bytes", "Size of a picture's file.", tuple(1 << power for power in range(12, 25))
        )
        self.picture_pixels = made.histogram(
            "caption_ray_picture_pixels", "Width times height.", (1e4, 1e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7)
        )
        self.retries = made.counter("caption_ray_retries", "Calls made again since no replica had answered them.")

    def observe_caption(self, best: Caption) -> None:
        """Take in a picture's best caption."""
        self.captions.labels("ok").inc()
        self.caption_words.observe(len(best.words))
        # Not the log-probability itself: histograms of negative values have no sum.
        self.surprise.observe(-best.log_probability / (len(best.words) + 1))

    def text(self) -> bytes:
        """Return what GET /metrics answers."""
        return self.exporter.text()


class BatchMetrics:
    """Histograms of what computes: of the app's own process, where that is the same."""

    def __init__(self, exporter: Exporter) -> None:
        self.seconds = exporter.histogram("caption_ray_batch_seconds", "Computing a batch.", _SECONDS)
        self.size = exporter.histogram(
            "caption_ray_batch_size", "Pictures computed together.", (1, 2, 4, 8, 16, 32, 64)
        )

    def observe(self, num_pictures: int, seconds: float) -> None:
        """Take in a batch that was computed together."""
        self.size.observe(num_pictures)
        self.seconds.observe(seconds)
