"""Intervals against the bootstrap done the long way: draw pictures, count, take percentiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.evaluation.statistics import Bootstrap, Estimate

RANDOM = np.random.default_rng(11)
TRUTH = np.repeat(np.arange(4), (120, 60, 30, 10))
RIGHT = RANDOM.random(len(TRUTH)) < np.array([0.9, 0.7, 0.5, 0.2])[TRUTH]
OTHER = np.where(RANDOM.random(len(TRUTH)) < 0.1, ~RIGHT, RIGHT)


def long_way(figure: Callable[[Any], float], groups: Any = None) -> Estimate:
    everything = np.arange(len(RIGHT))
    groups = [everything] if groups is None else groups
    drawn = [
        figure(np.concatenate([RANDOM.choice(group, len(group)) for group in groups])) for _ in range(10_000)
    ]
    return Estimate(figure(everything), *map(float, np.percentile(drawn, (2.5, 97.5))))


def assert_alike(found: Estimate, expected: Estimate) -> None:
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.low == pytest.approx(expected.low, abs=0.009)
    assert found.high == pytest.approx(expected.high, abs=0.009)
    assert found.low < found.value < found.high


def test_a_share() -> None:
    assert_alike(Bootstrap().share(RIGHT), long_way(lambda drawn: RIGHT[drawn].mean()))


def test_a_difference_is_paired() -> None:
    found = Bootstrap().difference(RIGHT, OTHER)
    expected = long_way(lambda drawn: RIGHT[drawn].mean() - OTHER[drawn].mean())
    assert_alike(found, expected)
    alone = Bootstrap().share(RIGHT)
    assert found.high - found.low < alone.high - alone.low


def test_a_mean_of_classes_draws_within_each() -> None:
    groups = [np.flatnonzero(place == TRUTH) for place in range(4)]

    def mean(drawn: Any) -> float:
        return float(np.mean([RIGHT[drawn][TRUTH[drawn] == place].mean() for place in range(4)]))

    assert_alike(Bootstrap().mean_of_shares(RIGHT, TRUTH), long_way(mean, groups))


def test_a_class_without_pictures_has_no_share() -> None:
    shares = Bootstrap().shares(RIGHT, TRUTH, 5)
    assert [one is None for one in shares] == [False] * 4 + [True]
    assert [one.value for one in shares if one] == [RIGHT[place == TRUTH].mean() for place in range(4)]


def test_the_same_seed_gives_the_same_intervals() -> None:
    first, again, other = (Bootstrap(seed=seed).mean_of_shares(RIGHT, TRUTH) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_answers_that_are_all_right_leave_nothing_to_chance() -> None:
    assert Bootstrap().share(np.ones(9, bool)) == Estimate(1.0, 1.0, 1.0)
