"""Traces as a collector receives them: OTLP over HTTP on loopback, from a server in a process of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.apps import base64
from tests.pictures import png
from tests.server import running_server
from tests.toy_models import write_toy_model

BODY = {"image": {"base64": base64(png())}, "labels": ["a", "b"]}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WITHOUT_SDK = "import sys; sys.modules['opentelemetry.sdk'] = None"
TELL_WHAT_IS_LOADED = """
import atexit, sys
atexit.register(lambda: print(*[name for name in sys.modules if name.startswith("opentelemetry.")]))
"""


class Collector:
    """What was sent, as it came."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.port = 0

    @property
    def spans(self) -> list[Span]:
        return [span for sent in self.requests for one in sent.resource_spans for span in _spans(one)]

    def named(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        collector.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a server that nothing asks for traces yet."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    write_toy_model(tmp_path / "models")
    return tmp_path


def _spans(one: Any) -> Iterator[Span]:
    for scope in one.scope_spans:
        yield from scope.spans


def attributes(span: Any) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def roots(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def test_a_request_is_one_trace_of_its_stages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        with running_server(home, access_log=True) as server:
            answer = httpx.post(
                f"{server.url()}/classify",
                json={"images": [BODY["image"]] * 3, "labels": ["a", "b"]},
                headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "abc"},
            )
            assert answer.status_code == 200
    request = collector.named("POST /classify")
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == PARENT
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "clipserve.request_id": "abc",
        "clipserve.model": "toy",
        "clipserve.items": 3,
    }
    stages = {span.name: span for span in collector.spans if span.parent_span_id == request.span_id}
    assert list(stages) == ["read", "decode", "queue", "encode", "score"]
    for name, span in stages.items():
        assert span.trace_id == request.trace_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano, name
        assert span.end_time_unix_nano <= request.end_time_unix_nano, name
    for name in ("decode", "queue", "encode", "score"):
        assert attributes(stages[name])["clipserve.items"] == 3, name
        assert attributes(stages[name])["clipserve.model"] == "toy", name
    assert 1 <= int(attributes(stages["encode"])["clipserve.batch_size"]) <= 3
    assert stages["queue"].start_time_unix_nano <= stages["encode"].start_time_unix_nano
    resource = attributes(collector.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "clipserve"
    line = next(one for one in lines(server.log) if one.get("request_id") == "abc")
    assert (line["trace_id"], line["span_id"]) == (TRACE, request.span_id.hex())


def test_failures_are_marked_and_probes_are_not_traced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{collector.port}/v1/traces"
        )
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        with running_server(home, access_log=True) as server:
            url = server.url()
            httpx.post(f"{url}/classify", json=BODY, headers={"x-request-timeout-ms": "0"})
            assert httpx.post(f"{url}/classify", json=BODY, headers={"x-request-timeout-ms": "1"}).is_error
            httpx.request("PROPFIND", f"{url}/nowhere", headers={"traceparent": "00-nonsense"})
            httpx.get(f"{url}/metrics")
    assert [(span.name, attributes(span)["http.response.status_code"]) for span in roots(collector)] == [
        ("POST /classify", 422),
        ("POST /classify", 504),
        ("HTTP", 404),
    ]
    failed = [span for span in roots(collector) if span.status.code == Status.STATUS_CODE_ERROR]
    assert [attributes(span)["error.type"] for span in failed] == ["504"]
    assert attributes(roots(collector)[-1])["http.request.method"] == "_OTHER"
    assert not any("health" in span.name or "metrics" in span.name for span in collector.spans)
    assert attributes(collector.requests[0].resource_spans[0].resource)["service.name"] == "pictures"


def test_what_the_caller_does_not_sample_is_not_sent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        with running_server(home, access_log=True) as server:
            httpx.post(
                f"{server.url()}/classify", json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}
            )
    assert collector.spans == []
    assert any(one.get("trace_id") == TRACE for one in lines(server.log)), "logs are found by it all the same"


@pytest.mark.parametrize(
    "variables", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}], ids=str
)
def test_nothing_is_loaded_unless_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    if variables:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with running_server(home, prologue=TELL_WHAT_IS_LOADED, access_log=True) as server:
        assert httpx.post(f"{server.url()}/classify", json=BODY).status_code == 200
    assert "opentelemetry.sdk" not in server.output.split()
    assert not any("trace_id" in one for one in lines(server.log))


@pytest.mark.parametrize(
    ("prologue", "variables", "why"),
    [
        (WITHOUT_SDK, {"OTEL_TRACES_EXPORTER": "otlp"}, "clipserve[otel]"),
        ("", {"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ("", {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_a_server_that_cannot_trace_says_so_and_serves(
    home: Path, monkeypatch: pytest.MonkeyPatch, prologue: str, variables: dict[str, str], why: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with running_server(home, prologue=prologue) as server:
        assert httpx.post(f"{server.url()}/classify", json=BODY).status_code == 200
    warnings = [one["message"] for one in lines(server.log) if one["level"] == "WARNING"]
    assert any("no traces" in warning and why in warning for warning in warnings), server.log


def test_a_collector_that_is_gone_delays_neither_requests_nor_the_stop(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    with running_server(home) as server:
        for _ in range(20):
            assert httpx.post(f"{server.url()}/classify", json=BODY).elapsed.total_seconds() < 5
        assert server.end(seconds=10) == 0
