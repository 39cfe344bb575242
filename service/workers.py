"""``clipserve serve --workers N``: processes that share one port, and the one that watches over them.

The parent opens the port and serves nothing itself. A worker that dies is replaced, and the new one takes
connections once its models are loaded. One that dies before that would die again: then all are stopped.

With ``--shared-engine`` the workers are fronts: one process more, the last by number, encodes for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from service.logs import configure_logging
from service.settings import Settings
from service.worker import Counts, EngineMember, Worker

_LOG = logging.getLogger("clipserve")
_SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it once, when it is imported
_PULSE_SECONDS = 3.0  # a process that beats once a second is not stuck before that
_LOOK_SECONDS = 1.0
_SPAWN = multiprocessing.get_context("spawn")


def run_workers(settings: Settings) -> int:
    """Serve with ``settings.workers`` processes until told to stop.

    Returns:
        The exit status: 0 after a stop that was asked for, 1 if the port is taken or a worker cannot start.
    """
    from service.metrics_listener import bound

    with contextlib.ExitStack() as stack:
        sockets = []
        for name, port in (("PORT", settings.port), ("METRICS_PORT", settings.metrics_port)):
            try:
                sockets += [] if port is None else [bound(settings.host, port)]
            except OSError as error:
                _LOG.critical("cannot start: %s %s: %s", name, port, error.strerror)
                return 1
            stack.callback(sockets[-1].close)
        settings.cache_folder.mkdir(parents=True, exist_ok=True)  # all that a container may write
        folder = tempfile.TemporaryDirectory(prefix="metrics-", dir=settings.cache_folder)
        os.environ[_SHARED_METRICS] = stack.enter_context(folder)
        bell, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with bell, door:  # kept open here, so that what is left at the door outlives an engine process
            return _Parent(settings, sockets, bell=bell, door=door).run()


class _Parent:
    """Starts workers, passes signals on, replaces the dead."""

    def __init__(
        self, settings: Settings, sockets: list[socket.socket], *, bell: socket.socket, door: socket.socket
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._bell = bell
        self._door = door
        self._starts = _SPAWN.RawArray(ctypes.c_uint32, settings.workers + settings.shared_engine)
        self._beats = _SPAWN.RawArray(ctypes.c_uint32, 1)
        self._pulse = _Pulse(self._beats, max(settings.stall_timeout, _PULSE_SECONDS))
        self._workers: dict[int, BaseProcess] = {}
        self._ready_before: dict[int, int] = {}
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Until the last worker has ended; gives the exit status."""
        patience = _LOOK_SECONDS if self._settings.shared_engine else None
        with _signals() as alarm:
            for number in reversed(range(len(self._starts))):
                self._start(number, replaces=False)
            while self._workers:
                dead = {process.sentinel: number for number, process in self._workers.items()}
                for event in wait([alarm, *dead], timeout=patience):
                    if event is alarm:
                        self._stop(alarm.recv(64))
                    else:
                        self._bury(dead[event])  # type: ignore[index]
                self._end_stuck_engine()
        return self._status

    def _start(self, number: int, *, replaces: bool) -> None:
        self._ready_before[number] = self._starts[number]
        member = self._engine() if self._is_engine(number) else self._worker(number, replaces=replaces)
        self._workers[number] = _SPAWN.Process(target=_live, args=(self._settings, member))
        self._workers[number].start()

    def _worker(self, number: int, *, replaces: bool) -> Worker:
        listening, *metrics = self._sockets
        return Worker(
            number=number,
            starts=self._starts,
            listening=listening,
            metrics_socket=metrics[0] if metrics else None,
            replaces=replaces,
            bell=self._bell if self._settings.shared_engine else None,
        )

    def _engine(self) -> EngineMember:
        return EngineMember(
            number=self._settings.workers, starts=self._starts, door=self._door, beats=self._beats
        )

    def _is_engine(self, number: int) -> bool:
        return number == self._settings.workers

    def _bury(self, number: int) -> None:
        process = self._workers.pop(number)
        process.join()
        _forget_gauges(process.pid)
        if self._stopping:
            self._status |= process.exitcode not in {0, -signal.SIGTERM}  # it dies of that while it starts
        elif not self._is_ready(number):
            self._status = 1
            self._stop([signal.SIGTERM])
        else:
            name = "the engine process" if self._is_engine(number) else f"worker {number}"
            _LOG.error("%s ended with status %s: starting another", name, process.exitcode)
            self._start(number, replaces=True)

    def _end_stuck_engine(self) -> None:
        """Fronts that wait for it are well themselves: no probe of theirs would tell."""
        number = self._settings.workers
        engine = self._workers.get(number)
        if engine is None or self._stopping or not self._is_ready(number):
            self._pulse.forget()
        elif self._pulse.stopped():
            _LOG.critical("the engine process has stood still for more than %g s", self._pulse.patience)
            engine.kill()
            self._pulse.forget()

    def _stop(self, numbers: Iterable[int]) -> None:
        self._stopping = True
        for one in self._sockets:  # or connections would wait here for nobody
            one.close()
        for asked in numbers:
            for number, process in self._workers.items():
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, asked if self._is_ready(number) else signal.SIGTERM)

    def _is_ready(self, number: int) -> bool:
        return self._starts[number] > self._ready_before[number]


class _Pulse:
    """Whether a number that another process counts up still changes.

    Only time in which this process looked counts: what halts a container halts both.
    """

    def __init__(self, beats: Counts, patience: float) -> None:
        self.patience = patience
        self._beats = beats
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self._last, self._looked, self._still = self._beats[0], time.monotonic(), 0.0

    def stopped(self) -> bool:
        """Whether it has been the same for more than ``patience`` seconds."""
        if self._beats[0] != self._last:
            self.forget()
        now = time.monotonic()
        self._still += min(now - self._looked, _LOOK_SECONDS)
        self._looked = now
        return self._still > self.patience


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of SIGTERM and SIGINT are read as they come."""
    alarm, write = socket.socketpair()
    write.setblocking(False)
    with alarm, write:
        earlier = signal.set_wakeup_fd(write.fileno())
        handlers = {
            number: signal.signal(number, _leave_to_alarm) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield alarm
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier)


def _leave_to_alarm(*_: object) -> None:
    """The number of the signal has been written to the wake-up socket already."""


def _forget_gauges(pid: int | None) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _live(settings: Settings, member: Worker | EngineMember) -> None:
    """The life of one process."""
    os.setpgrp()  # a Ctrl-C reaches the parent alone, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_logging(level=settings.log_level, style=settings.log_format)
    sys.exit(_encode(settings, member) if isinstance(member, EngineMember) else _serve(settings, member))


def _encode(settings: Settings, member: EngineMember) -> int:
    from service.shared.engine_process import run_engine

    return run_engine(settings, member)


def _serve(settings: Settings, worker: Worker) -> int:
    from service.app import create_app
    from service.server import run

    settings = settings.of_one_worker()
    return run(create_app(settings, worker), settings, [worker.listening])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
