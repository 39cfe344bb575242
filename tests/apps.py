"""A whole server without sockets: the application, its lifespan, and a client."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from service.app import create_app
from service.context import Services
from service.settings import Settings
from tests.toy_models import write_toy_model


class Client(httpx.AsyncClient):
    """Talks to an application in the same event loop."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://server")
        self.services: Services = app.state.services

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one series; 0 where it does not exist."""
        return read_metric((await self.get("/metrics")).text, name, **labels)


def read_metric(text: str, name: str, **labels: str) -> float:
    """One series of Prometheus' text format, whatever the order of its labels; 0 where it is not there."""
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        given_name, _, given_labels = series.removesuffix("}").partition("{")
        if given_name == f"clipserve_{name}" and wanted == set(filter(None, given_labels.split(","))):
            return float(value)
    return 0.0


def toy_settings(home: Path, **settings: Any) -> Settings:
    """Settings of a server of one toy model, with nothing taken from the environment or the user's home."""
    if not (home / "models" / "toy").exists():
        write_toy_model(home / "models")
    given: dict[str, Any] = {
        "home": home,
        "models": ("toy",),
        "runtime": "onnxruntime",
        "provider": "cpu",
        "inference_threads": 1,
        "decode_threads": 2,
        "access_log": False,
        "drain_seconds": 3600.0,  # a server whose engine is dead ends its process, here that of the tests
    }
    return Settings(**given | settings)


@asynccontextmanager
async def serving(home: Path, *, wait: bool = True, **settings: Any) -> AsyncIterator[Client]:
    """A client of a server that is ready, unless ``wait`` is false."""
    app = create_app(toy_settings(home, **settings))
    async with app.router.lifespan_context(app), Client(app) as client:
        if wait:
            await until(lambda: client.services.ready)
        yield client


async def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Wait for something that happens without telling."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def load_alone(home: Path, name: str = "toy") -> LoadedModel:
    """The same model without a server, for what it must answer."""
    options = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=1)
    return ModelRegistry(home / "models", options=options).load(name)


def base64(data: bytes) -> str:
    return b64encode(data).decode()
