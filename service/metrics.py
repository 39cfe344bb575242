"""Metric objects and bucket choices. No label takes a value from a request, except a known model's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from service.batcher import DropReason

# A time of birth for every series would double what a scrape weighs, and no one reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From half a millisecond to half a minute, each bucket twice the last: a warm request takes single
# milliseconds on a CPU, and one behind a full queue may take seconds.
SECONDS = tuple(0.0005 * 2**step for step in range(17))
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Every metric of one server. Each server has a registry of its own, so that tests can run several.

    With ``shared``, the folder named by PROMETHEUS_MULTIPROC_DIR adds up what several processes count.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._shared = shared
        self._watched: dict[tuple[Gauge, tuple[str, ...]], Callable[[], float]] = {}
        counter = partial(Counter, namespace="clipserve", registry=self.registry)
        gauge = partial(Gauge, namespace="clipserve", registry=self.registry, multiprocess_mode="livesum")
        seconds = partial(Histogram, namespace="clipserve", registry=self.registry, buckets=SECONDS)
        sizes = partial(Histogram, namespace="clipserve", registry=self.registry, buckets=BATCH_SIZES)

        self.requests = counter("requests", "Requests answered.", ("route", "code"))
        self.request_seconds = seconds("request_seconds", "Seconds from headers to answer.", ("route",))
        self.stage_seconds = seconds("stage_seconds", "Seconds a request spent in a stage.", ("stage",))
        self.batch_size = sizes("batch_size", "Items in a batch.", ("model", "encoder"))
        self.batch_seconds = seconds("batch_seconds", "Seconds a batch ran.", ("model", "encoder"))
        self.queue_items = gauge("queue_items", "Items that wait for a batch.", ("model", "encoder", "lane"))
        self.admitted_items = gauge("admitted_items", "Items of requests being worked on.")
        self.items = counter("items", "Items encoded or scored.", ("model", "kind"))
        self.rejected = counter("rejected", "Requests refused and items dropped.", ("reason",))
        self.cache_events = counter("cache_events", "What happened in a cache.", ("cache", "event"))
        self.cache_bytes = gauge("cache_bytes", "Bytes a cache holds.", ("cache",))
        self.model_info = gauge(
            "model_info",
            "1 for each loaded model.",
            ("model", "runtime", "provider", "precision"),
            multiprocess_mode="livemax",
        )
        self.store_reachable = gauge(
            "store_reachable",
            "1 while classifiers of other servers are seen, 0 while serving from memory.",
            multiprocess_mode="livemin",
        )
        self.model_load_seconds = gauge(
            "model_load_seconds", "Seconds to load and warm up.", ("model",), multiprocess_mode="livemax"
        )

    def watch(self, gauge: Gauge, *labels: str, value: Callable[[], float]) -> None:
        """Let ``gauge`` be ``value()`` whenever it is looked at."""
        self._watched[gauge, labels] = value

    def forget(self, gauge: Gauge, *labels: str) -> None:
        """Take one series of ``gauge`` away."""
        self._watched.pop((gauge, labels), None)
        gauge.remove(*labels)

    def refresh(self) -> None:
        """Look at everything that is watched. Of several processes each must, for one is asked for all."""
        for (gauge, labels), value in self._watched.items():
            (gauge.labels(*labels) if labels else gauge).set(value())

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        self.refresh()
        if not self._shared:
            return generate_latest(self.registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


class BatchMetrics:
    """Tells ``Metrics`` what the batcher of one encoder does. Meets ``batcher.BatchObserver``."""

    def __init__(self, metrics: Metrics, *, model: str, encoder: str) -> None:
        self._size = metrics.batch_size.labels(model, encoder)
        self._seconds = metrics.batch_seconds.labels(model, encoder)
        self._rejected = metrics.rejected

    def batch(self, *, size: int, seconds: float) -> None:
        """See ``BatchObserver.batch``."""
        self._size.observe(size)
        self._seconds.observe(seconds)

    def dropped(self, *, reason: DropReason, count: int) -> None:
        """See ``BatchObserver.dropped``."""
        self._rejected.labels(reason).inc(count)
