"""The engine process: the sessions and batchers of every model, for all fronts together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from service.host import LocalHost, batch_options
from service.metrics import Metrics
from service.registry import registry_of
from service.served import ServedModel
from service.settings import Settings
from service.shared.fronts import Fronts
from service.signals import StopSignals
from service.worker import EngineMember

_LOG = logging.getLogger("clipserve")
_SUPERVISION_SECONDS = 1.0
_PATIENCE = 5.0  # seconds for fronts to leave, on top of those in which they answer their last requests


def run_engine(settings: Settings, member: EngineMember) -> int:
    """Encode for fronts until told to stop, and until they have left.

    Returns:
        The process's exit status: 0 after a stop that was asked for, 1 if a model cannot be loaded.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_EngineProcess(settings, member).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return None
    return uvloop.new_event_loop


class _EngineProcess:
    """Everything of it, on one event loop."""

    def __init__(self, settings: Settings, member: EngineMember) -> None:
        self._settings = settings
        self._member = member
        self._metrics = Metrics(shared=True)
        options = replace(batch_options(settings), capacity=sys.maxsize)  # each front keeps to MAX_QUEUE
        self._host = LocalHost(registry_of(settings), options, self._metrics)
        self._models: list[ServedModel] = []
        self._fronts = Fronts()
        self._stopping = asyncio.Event()
        self._stops = StopSignals()

    async def run(self) -> int:
        """From loading the models to closing them."""
        try:
            await self._load()
        except Exception as error:
            _LOG.critical("cannot start: %s", error, exc_info=_LOG.isEnabledFor(logging.DEBUG))
            return 1
        gc.freeze()  # as in the start of every server
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._fronts.listen(self._member.door)
        self._metrics.refresh()
        self._member.tell_ready()
        _LOG.info("the engine process is ready", extra={"pid": os.getpid()})
        await self._supervise()
        await self._leave()
        return 0

    async def _load(self) -> None:
        for name in dict.fromkeys(self._settings.models):
            served = await self._host.open(name)
            served.show()
            self._models.append(served)
            self._fronts.add(served)

    async def _supervise(self) -> None:
        """Until told to stop. With a dead encoder the process ends, so that another one is started."""
        while not self._stopping.is_set():
            self._member.tell_alive()
            self._metrics.refresh()
            if failures := self._fronts.failures():
                _LOG.critical("the engine is dead: %s", "; ".join(failures))
                _end_at_once(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _SUPERVISION_SECONDS)

    async def _leave(self) -> None:
        """Fronts are told to stop at the same time, and have requests to answer before they do."""
        answering = self._settings.drain_seconds + self._settings.request_timeout
        await self._fronts.deserted(seconds=answering + _PATIENCE)
        self._fronts.close()
        for served in self._models:
            await served.close()

    def _stop(self) -> None:
        if self._stops.is_second():
            _LOG.warning("stopping at once")
            _end_at_once(0)
        self._stopping.set()


def _end_at_once(status: int) -> None:
    # A batch that hangs holds its thread for ever, and Python would wait for that thread.
    logging.shutdown()
    os._exit(status)
