"""Where models are opened and their encoders run: in this process, or in one that others share."""

from __future__ import annotations

import asyncio
from typing import Protocol

from models.registry import ModelRegistry
from service.metrics import Metrics
from service.served import BatchOptions, LocalModel, ServedModel


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
        return LocalModel(await asyncio.to_thread(read, name), self._options, self._metrics)

    async def close(self) -> None:
        """Nothing is shared."""
