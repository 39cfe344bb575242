"""When a process counts as stuck."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from service import workers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(workers, "time", clock)
    return clock


def test_it_is_stuck_when_it_was_looked_at_for_long_enough_and_stood_still(clock: SimpleNamespace) -> None:
    beats = [7]
    pulse = workers._Pulse(beats, 3.0)
    for _ in range(5):
        clock.now += 1
        beats[0] += 1
        assert not pulse.stopped()
    seen = []
    for _ in range(5):
        clock.now += 1
        seen.append(pulse.stopped())
    assert seen == [False, False, False, True, True]


def test_what_was_halted_together_is_not_stuck(clock: SimpleNamespace) -> None:
    """As ``docker pause`` halts a container: the one who looks may be the first to go on."""
    beats = [7]
    pulse = workers._Pulse(beats, 3.0)
    clock.now += 3600
    assert not pulse.stopped()
    beats[0] += 1
    clock.now += 1
    assert not pulse.stopped()
