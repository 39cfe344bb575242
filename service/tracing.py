"""A trace of each request, sent to an OpenTelemetry collector. Off, and never imported, unless asked for.

What a trace holds comes from ``Timings``, so the stages of a trace are those of ``Server-Timing`` and of the
metrics. Spans are made when the answer is out: while a request runs, only clocks are read.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.types import Scope

from service.timings import Stage, Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_LOG = logging.getLogger("clipserve")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"}
_NOT_TRACED = (
    "/health/",
    "/.well-known/",
    "/metrics",
)  # asked every few seconds, and never slow for a reason a trace would show
_LAST_SPANS = 3.0  # seconds in which a collector may take what is left when the server stops


def open_tracing(variables: Mapping[str, str]) -> Tracing | None:
    """Tracing as the standard variables ``OTEL_*`` say, or None where they ask for none.

    A log line says why there is none although they ask for it: what is set for a whole cluster must not keep
    a server from starting.
    """
    if not _are_wanted(variables):
        return None
    exporter = variables.get("OTEL_TRACES_EXPORTER") or "otlp"
    protocol = next(filter(None, map(variables.get, _PROTOCOLS)), "http/protobuf")
    if (exporter, protocol) != ("otlp", "http/protobuf"):
        _LOG.warning(
            "no traces: they are sent by otlp over http/protobuf, not by %s over %s", exporter, protocol
        )
        return None
    try:
        return Tracing(_provider())
    except ModuleNotFoundError:
        _LOG.warning("no traces: OTEL_* asks for them, and they need the extra clipserve[otel]")
        return None


class Tracing:
    """Makes a ``RequestTrace`` a request; a thread of the SDK's own sends them in batches."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("clipserve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Timings:
        """The timings of a request that has just come; it joins the trace that its ``traceparent`` names."""
        if scope["path"].startswith(_NOT_TRACED):
            return Timings()
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span("HTTP", self._propagator.extract(carrier), SpanKind.SERVER)
        return RequestTrace(self._tracer, span)

    async def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        # Neither the loop's threads nor Python's exit would let go of a thread that hangs.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _LAST_SPANS)


@dataclass
class _Interval:
    """A stage, from when its first item began until its last one ended, in nanoseconds since 1970."""

    began: int
    ended: int
    items: int
    batch_size: int

    def widen(self, other: _Interval) -> None:
        self.began = min(self.began, other.began)
        self.ended = max(self.ended, other.ended)
        self.items += other.items
        self.batch_size = max(self.batch_size, other.batch_size)

    def attributes(self) -> dict[str, int]:
        facts = {"clipserve.items": self.items, "clipserve.batch_size": self.batch_size}
        return {name: value for name, value in facts.items() if value}


class RequestTrace(Timings):
    """Timings that become a span for the request and, inside it, one for each of its stages."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        super().__init__()
        context = span.get_span_context()
        self.ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        self._tracer = tracer
        self._span = span
        self._stages: dict[Stage, _Interval] = {}

    def note(
        self,
        stage: Stage,
        seconds: float,
        *,
        ago: float = 0.0,
        items: int = 0,
        batch_size: int = 0,
    ) -> None:
        """See ``Timings.note``."""
        super().note(stage, seconds)
        ended = time.time_ns() - round(1e9 * ago)
        interval = _Interval(ended - round(1e9 * seconds), ended, items, batch_size)
        self._stages.setdefault(stage, interval)
        if self._stages[stage] is not interval:
            self._stages[stage].widen(interval)

    def end(self, *, method: str, route: str | None, status: int, request_id: str) -> None:
        """End the request's span, with names and attributes of OpenTelemetry's HTTP conventions."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        about = {"clipserve.model": self.model} if self.model else {}
        here = set_span_in_context(self._span)
        for stage, interval in self._stages.items():
            attributes: dict[str, str | int] = {**about, **interval.attributes()}
            child = self._tracer.start_span(stage, here, attributes=attributes, start_time=interval.began)
            child.end(interval.ended)
        known = method if method in _METHODS else "HTTP"
        self._span.update_name(f"{known} {route}" if route else known)
        self._span.set_attributes(
            {
                "http.request.method": known if known == method else "_OTHER",
                "http.response.status_code": status,
                "clipserve.request_id": request_id,
                "clipserve.items": max((stage.items for stage in self._stages.values()), default=0),
                **({"http.route": route} if route else {}),
                **about,
            }
        )
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _are_wanted(variables: Mapping[str, str]) -> bool:
    exporter = variables.get("OTEL_TRACES_EXPORTER", "")
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(map(variables.get, _ENDPOINTS))


def _provider() -> TracerProvider:
    """One of our own, not the process's: address, sampling and batches are as ``OTEL_*`` tell the SDK."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": "clipserve", "service.version": version("clipserve")})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
