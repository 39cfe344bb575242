"""Where models are opened and their encoders run: in this process, or in one that others share."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from models.registry import ModelRegistry
from service.metrics import Metrics
from service.served import BatchOptions, LocalModel, ServedModel
from service.settings import Settings

_LOG = logging.getLogger("clipserve")


class ModelHost(Protocol):
    """Puts models into service."""

    @property
    def reachable(self) -> bool:
        """Whether encoders can be asked now; if not, they will be again without anyone's doing."""
        ...

    async def open(self, name: str, *, again: bool = False) -> ServedModel:
        """Load a model and put it into service; ``again``: from its files, beside the one that is served."""
        ...

    async def close(self) -> None:
        """Let go of what models share; each has been closed."""
        ...


def batch_options(settings: Settings) -> BatchOptions:
    """How batches are made with these settings."""
    return BatchOptions(
        max_batch=settings.max_batch, capacity=settings.max_queue, stall_seconds=settings.stall_timeout
    )


class LocalHost:
    """Runs the graphs of a registry's models in this process."""

    reachable = True

    def __init__(self, registry: ModelRegistry, options: BatchOptions, metrics: Metrics) -> None:
        self._registry = registry
        self._options = options
        self._metrics = metrics

    async def open(self, name: str, *, again: bool = False) -> LocalModel:
        """Load, warm up and serve a model; raises what ``ModelRegistry.load`` does."""
        read = self._registry.reload if again else self._registry.load
        model = await asyncio.to_thread(read, name)
        _LOG.info("model loaded", extra={"model": name} | model.running())
        return LocalModel(model, self._options, self._metrics)

    async def close(self) -> None:
        """Nothing is shared."""
