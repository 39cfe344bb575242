"""Admission: places are taken before the work and always given back."""

from __future__ import annotations

import pytest

from service.admission import Admission
from service.batcher import QueueFullError


def admission(capacity: int, *, wait: float = 1.0) -> Admission:
    return Admission(capacity, expected_wait=lambda: wait)


def test_a_request_holds_one_place_until_it_is_known_how_many_it_needs() -> None:
    counts = admission(10)
    with counts.reserve() as first:
        assert counts.taken == first.held == 1
        with counts.reserve() as second:
            second.grow_to(4)
            assert (counts.taken, second.held) == (5, 4)
        assert counts.taken == 1
    assert counts.taken == 0


def test_places_only_grow() -> None:
    counts = admission(10)
    with counts.reserve() as places:
        places.grow_to(4)
        places.grow_to(2)
        places.grow_to(4)
        assert counts.taken == 4


def test_the_last_place_is_given_and_one_more_refused() -> None:
    counts = admission(3, wait=7.5)
    with counts.reserve() as places:
        places.grow_to(3)
        with (
            pytest.raises(QueueFullError, match=r"3 items are being worked on.*limit of 3") as refusal,
            counts.reserve(),
        ):
            pytest.fail("was admitted")
        assert refusal.value.retry_after == 7.5
        assert counts.taken == 3
    with counts.reserve():
        assert counts.taken == 1


def test_growing_takes_all_or_nothing() -> None:
    counts = admission(5)
    with counts.reserve() as first, counts.reserve() as second:
        first.grow_to(3)
        with pytest.raises(QueueFullError, match="4 items are being worked on, 2 more"):
            second.grow_to(3)
        assert counts.taken == 4
        second.grow_to(2)
        assert counts.taken == 5
    assert counts.taken == 0


def test_a_failing_request_gives_its_places_back() -> None:
    counts = admission(5)
    with pytest.raises(ZeroDivisionError), counts.reserve() as places:  # noqa: PT012 - the last one raises
        places.grow_to(4)
        raise ZeroDivisionError
    assert counts.taken == 0
