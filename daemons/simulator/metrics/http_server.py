"""The families of prometheus-fastapi-instrumentator, which vLLM's HTTP server carries."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
"""Paths that vLLM leaves out."""

_HIGH_RESOLUTION: tuple[float, ...] = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    3.5,
    4.0,
    4.5,
)
_HIGH_RESOLUTION += (5.0, 7.5, 10.0, 30.0, 60.0)
_LOW_RESOLUTION = (0.1, 0.5, 1.0)
_SIZE = (
    "Content length of {} by handler. Only value of header is respected. Otherwise ignored. "
    "No percentile calculated. "
)


class HttpMetrics:
    """Counts requests by handler."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ["method", "status", "handler"],
            registry=registry,
        )
        self._in = Summary(
            "http_request_size_bytes", _SIZE.format("incoming requests"), ["handler"], registry=registry
        )
        self._out = Summary(
            "http_response_size_bytes", _SIZE.format("outgoing responses"), ["handler"], registry=registry
        )
        self._exact = Histogram(
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile "
            "calculations. ",
            buckets=_HIGH_RESOLUTION,
            registry=registry,
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is "
            "important. ",
            ["method", "handler"],
            buckets=_LOW_RESOLUTION,
            registry=registry,
        )

    def count(self, handler: str, method: str, status: int, sizes: tuple[int, int], seconds: float) -> None:
        """Book one request; `sizes` are the lengths of its two bodies, 0 where none was declared."""
        self._requests.labels(method, f"{status // 100}xx", handler).inc()
        self._in.labels(handler).observe(sizes[0])
        self._out.labels(handler).observe(sizes[1])
        self._exact.observe(seconds)
        self._coarse.labels(method, handler).observe(seconds)
