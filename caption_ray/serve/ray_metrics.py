"""The app's figures through Ray: each node's metrics agent exports those of all processes on it, tagged with theirs.

GET /metrics of an app with several replicas could only tell what one of them has done, another each time. Ray exports
under the app's own names, with `ray_` before them, and with the replica, deployment and application as labels.
"""

from collections.abc import Sequence

from ray.serve.metrics import Counter, Gauge, Histogram

_TEXT = """\
# This process is one of several. Ray exports the figures of all of them, as ray_caption_ray_*, from each node's metrics
# agent; Prometheus finds those by /tmp/ray/session_latest/metrics/prometheus/prometheus.yml on the head node.
"""


class RayExporter:
    """See metrics.Exporter. For processes that are replicas of Ray Serve."""

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> "_Counter":
        """Return a counter."""
        return _Counter(Counter(name, description=meaning, tag_keys=tuple(labels)), tuple(labels), {})

    def gauge(self, name: str, meaning: str) -> "_Gauge":
        """Return a gauge."""
        return _Gauge(Gauge(name, description=meaning))

    def histogram(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> "_Histogram":
        """Return a histogram."""
        made = Histogram(name, description=meaning, boundaries=list(buckets), tag_keys=tuple(labels))
        return _Histogram(made, tuple(labels), {})

    def text(self) -> bytes:
        """Return where the figures are, as a comment: whoever scrapes this gets none, not a part for the whole."""
        return _TEXT.encode()


class _Counter:
    def __init__(self, counter: Counter, keys: tuple[str, ...], tags: dict[str, str]) -> None:
        self._counter, self._keys, self._tags = counter, keys, tags

    def labels(self, *values: str) -> "_Counter":
        return _Counter(self._counter, self._keys, dict(zip(self._keys, values, strict=True)))

    def inc(self, amount: float = 1) -> None:
        self._counter.inc(amount, self._tags)


class _Gauge:
    """Ray's gauges are set, not counted up and down."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._level = gauge, 0.0

    def inc(self, amount: float = 1) -> None:
        self._level += amount
        self._gauge.set(self._level)

    def dec(self, amount: float = 1) -> None:
        self.inc(-amount)


class _Histogram:
    def __init__(self, histogram: Histogram, keys: tuple[str, ...], tags: dict[str, str]) -> None:
        self._histogram, self._keys, self._tags = histogram, keys, tags

    def labels(self, *values: str) -> "_Histogram":
        return _Histogram(self._histogram, self._keys, dict(zip(self._keys, values, strict=True)))

    def observe(self, amount: float) -> None:
        self._histogram.observe(amount, self._tags)
