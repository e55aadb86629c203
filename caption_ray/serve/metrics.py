"""What Prometheus is told, in a registry of the app's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from caption_ray.inference import Caption

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServiceMetrics:
    """Counters and histograms of one app; a backend in the same process may report its batches to it."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "caption_ray_requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "caption_ray_request_seconds", "From the request's head to the answer's end.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("caption_ray_requests_in_flight", "Requests being answered now.", registry=registry)
        self.captions = Counter(
            "caption_ray_captions", "Pictures by outcome: ok, or the error's code.", ("outcome",), registry=registry
        )
        self.decode_seconds = Histogram(
            "caption_ray_decode_seconds", "A picture's file to the model's input.", buckets=_SECONDS, registry=registry
        )
        self.model_seconds = Histogram(
            "caption_ray_model_seconds", "In the model, waiting for a batch included.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "caption_ray_batch_seconds", "Computing a batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "caption_ray_batch_size", "Pictures computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        self.caption_words = Histogram(
            "caption_ray_caption_words", "Words of the best caption.",
            buckets=(1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32), registry=registry,
        )  # fmt: skip
        self.surprise = Histogram(
            "caption_ray_caption_surprise_nats",
            "Minus the mean log-probability of a caption's words and end; high where pictures are unlike training's.",
            buckets=(0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5), registry=registry,
        )  # fmt: skip
        self.picture_bytes = Histogram(
            "caption_ray_picture_bytes", "Size of a picture's file.",
            buckets=tuple(1 << power for power in range(12, 25)), registry=registry,
        )  # fmt: skip
        self.picture_pixels = Histogram(
            "caption_ray_picture_pixels", "Width times height.",
            buckets=(1e4, 1e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7), registry=registry,
        )  # fmt: skip
        self.retries = Counter(
            "caption_ray_retries", "Requests sent again since their replica had died.", registry=registry
        )

    def observe_batch(self, num_pictures: int, seconds: float) -> None:
        """Take in a batch that was computed together."""
        self.batch_size.observe(num_pictures)
        self.batch_seconds.observe(seconds)

    def observe_caption(self, best: Caption) -> None:
        """Take in a picture's best caption."""
        self.captions.labels("ok").inc()
        self.caption_words.observe(len(best.words))
        # Not the log-probability itself: histograms of negative values have no sum.
        self.surprise.observe(-best.log_probability / (len(best.words) + 1))

    def text(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)
