"""The cache: bounded in bytes, least recently used first out, keyed on content and nothing else."""

from __future__ import annotations

from collections import Counter
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prompts.cache import ENTRY_OVERHEAD, EmbeddingCache, class_key, matrix_key
from prompts.labels import Label
from prompts.templates import TemplateSet

ONE = TemplateSet(name="one", templates=("a {label}",))
TWO = TemplateSet(name="two", templates=("a {label}", "the {label}"))
ENTRY = 16 * 4 + ENTRY_OVERHEAD


class Events(Counter[str]):
    def __call__(self, event: str, count: int) -> None:
        self[event] += count


def row(value: float) -> NDArray[np.float32]:
    return np.full(16, value, dtype=np.float32)


def test_what_is_put_is_got():
    events = Events()
    cache = EmbeddingCache(10 * ENTRY, events)
    cache.put(b"a", row(1))
    found = cache.get(b"a")
    assert found is not None
    np.testing.assert_array_equal(found, row(1))
    assert cache.get(b"b") is None
    assert events == {"hit": 1, "miss": 1}
    assert (len(cache), cache.nbytes) == (1, ENTRY)


def test_get_many_keeps_the_order_and_counts_once():
    calls: list[tuple[str, int]] = []
    cache = EmbeddingCache(10 * ENTRY, lambda event, count: calls.append((event, count)))
    cache.put_many([b"a", b"b"], np.stack([row(1), row(2)]))
    found = cache.get_many([b"b", b"x", b"a", b"y", b"b"])
    assert [None if array is None else array[0] for array in found] == [2, None, 1, None, 2]
    assert calls == [("hit", 3), ("miss", 2)]


def test_the_least_recently_used_goes_first():
    events = Events()
    cache = EmbeddingCache(3 * ENTRY, events)
    for name in (b"a", b"b", b"c"):
        cache.put(name, row(0))
    cache.get(b"a")
    cache.put(b"d", row(0))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert events["evict"] == 1


def test_a_large_array_drives_out_several():
    events = Events()
    cache = EmbeddingCache(3 * ENTRY, events)
    for name in (b"a", b"b", b"c"):
        cache.put(name, row(0))
    cache.put(b"big", np.zeros(16 * 2 + ENTRY_OVERHEAD // 4, dtype=np.float32))
    assert events["evict"] == 2
    assert cache.nbytes <= 3 * ENTRY
    assert cache.get(b"c") is not None


def test_an_array_larger_than_the_cache_is_rejected():
    events = Events()
    cache = EmbeddingCache(ENTRY, events)
    cache.put(b"a", row(1))
    cache.put(b"b", np.zeros(17, dtype=np.float32))
    assert events == {"reject": 1}
    assert cache.get(b"a") is not None


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = EmbeddingCache(0)
    cache.put(b"a", row(1))
    assert cache.get(b"a") is None


def test_putting_again_replaces():
    cache = EmbeddingCache(10 * ENTRY)
    cache.put(b"a", row(1))
    cache.put(b"a", row(2))
    found = cache.get(b"a")
    assert found is not None
    assert found[0] == 2
    assert cache.nbytes == ENTRY


def test_cached_arrays_cannot_change():
    cache = EmbeddingCache(10 * ENTRY)
    mine = row(1)
    cache.put(b"a", mine)
    mine[:] = 9
    found = cache.get(b"a")
    assert found is not None
    assert found[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 5


def test_a_row_does_not_keep_its_matrix_alive():
    cache = EmbeddingCache(10 * ENTRY)
    cache.put(b"a", np.zeros((1000, 16), dtype=np.float32)[3])
    found = cache.get(b"a")
    assert found is not None
    assert found.base is None


def test_clear_forgets_everything():
    cache = EmbeddingCache(10 * ENTRY)
    cache.put(b"a", row(1))
    cache.clear()
    assert (len(cache), cache.nbytes, cache.get(b"a")) == (0, 0, None)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), max_size=60), st.integers(0, 6000))
def test_the_bound_holds_and_the_count_is_right(puts: list[tuple[int, int]], max_bytes: int):
    cache = EmbeddingCache(max_bytes)
    for key, size in puts:
        cache.put(bytes([key]), np.zeros(size, dtype=np.float32))
        assert cache.nbytes <= max_bytes
    held = [array for array in cache.get_many([bytes([key]) for key in range(10)]) if array is not None]
    assert cache.nbytes == sum(array.nbytes + ENTRY_OVERHEAD for array in held)
    assert len(cache) == len(held)


def test_threads_do_not_spoil_it():
    cache = EmbeddingCache(20 * ENTRY)
    wrong: list[float] = []

    def work(seed: int) -> None:
        for value in np.random.default_rng(seed).integers(0, 50, 2000).tolist():
            found = cache.get(bytes([value]))
            if found is None:
                cache.put(bytes([value]), row(value))
            elif found[0] != value:
                wrong.append(value)

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 20
    assert cache.nbytes == 20 * ENTRY


def test_keys_depend_on_every_part():
    keys = {
        class_key("m", ONE, Label("cat")),
        class_key("n", ONE, Label("cat")),
        class_key("m", TWO, Label("cat")),
        class_key("m", ONE, Label("dog")),
        class_key("m", ONE, Label("dog", ("cat",))),
        class_key("m", ONE, Label("dog", ("cat", "dog"))),
        matrix_key("m", ONE, [Label("cat")]),
        matrix_key("m", ONE, [Label("dog", ("cat",))]),
        matrix_key("m", ONE, [Label("cat"), Label("dog")]),
        matrix_key("m", ONE, [Label("dog"), Label("cat")]),
    }
    assert len(keys) == 10


def test_keys_are_of_content_alone():
    renamed = TemplateSet(name="other", templates=ONE.templates, description="the same")
    assert class_key("m", ONE, Label("cat")) == class_key("m", renamed, Label("cat"))
    own = Label("cat", ("a kitten",))
    assert class_key("m", ONE, own) == class_key("m", TWO, own)
    assert class_key("m", ONE, own) == class_key("m", ONE, Label("kitten", ("a kitten",)))
    assert matrix_key("m", ONE, [own]) == matrix_key("m", TWO, [own])
    assert matrix_key("m", ONE, [own, Label("x")]) != matrix_key("m", TWO, [own, Label("x")])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([Label("ab"), Label("c")], [Label("a"), Label("bc")]),
        ([Label("a", ("b", "c"))], [Label("a", ("b",)), Label("c", ("c",))]),
        ([Label("a", ("b", "c"))], [Label("b"), Label("c")]),
        ([Label('a", "b')], [Label("a"), Label("b")]),
        ([Label("a\\")], [Label("a\\\\")]),
        ([Label("é")], [Label("\\u00e9")]),
    ],
)
def test_boundaries_are_kept(one: list[Label], other: list[Label]):
    assert matrix_key("m", ONE, one) != matrix_key("m", ONE, other)


own_prompts = st.lists(st.text(max_size=3), min_size=1).map(tuple)
lists = st.lists(st.builds(Label, st.text(max_size=4), st.none() | own_prompts), min_size=1, max_size=4)


@given(lists, lists)
def test_keys_are_equal_exactly_when_the_work_is(one: list[Label], other: list[Label]):
    def work(given: list[Label]) -> list[object]:
        return [label.name if label.prompts is None else list(label.prompts) for label in given]

    assert (matrix_key("m", ONE, one) == matrix_key("m", ONE, other)) == (work(one) == work(other))
