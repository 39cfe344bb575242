"""``GET /metrics``, where it has no port of its own."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.context import services_of

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    exposition = services_of(request).engine.metrics.exposition()
    return Response(exposition, media_type=CONTENT_TYPE_LATEST)
