"""The token bucket: what it lets in over time, and when it says to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RateLimitedError
from service.rates import TokenBucket


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def entered(bucket: TokenBucket, items: int = 1) -> bool:
    try:
        bucket.enter()
    except RateLimitedError:
        return False
    bucket.charge(items - 1)
    return True


def test_a_burst_passes_and_the_next_waits_for_its_token() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=2, burst=3, clock=clock)
    assert [entered(bucket) for _ in range(4)] == [True, True, True, False]
    with pytest.raises(RateLimitedError, match="2 items a second, and 3 after a pause") as refusal:
        bucket.enter()
    assert refusal.value.retry_after == pytest.approx(0.5)
    clock.now += 0.5
    assert [entered(bucket) for _ in range(2)] == [True, False]


def test_a_long_pause_fills_no_more_than_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=2, burst=3, clock=clock)
    clock.now += 1000
    assert sum(entered(bucket) for _ in range(10)) == 3


def test_a_request_above_the_burst_has_its_turn_and_is_paid_for_afterwards() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10, burst=5, clock=clock)
    assert entered(bucket, items=105)
    with pytest.raises(RateLimitedError) as refusal:
        bucket.enter()
    assert refusal.value.retry_after == pytest.approx(10.1)
    clock.now += refusal.value.retry_after + 1e-6
    assert entered(bucket)


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20)), max_size=60),
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 50),
)
def test_over_time_no_more_than_the_rate_gets_in(
    steps: list[tuple[float, int]], rate: float, burst: int
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate=rate, burst=burst, clock=clock)
    began, passed = clock.now, 0
    for pause, items in steps:
        clock.now += pause
        if entered(bucket, items):
            # Before its own items, a request finds at least one token among those that ever came.
            assert passed + 1 <= burst + rate * (clock.now - began) + 1e-6
            passed += items


@given(rate=st.floats(0.01, 1000), burst=st.integers(1, 50), items=st.integers(1, 200))
def test_who_comes_back_when_told_gets_in(rate: float, burst: int, items: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate=rate, burst=burst, clock=clock)
    bucket.enter()
    bucket.charge(burst + items)
    with pytest.raises(RateLimitedError) as refusal:
        bucket.enter()
    clock.now += refusal.value.retry_after + 1e-6
    assert entered(bucket)
