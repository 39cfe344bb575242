"""Two stores on one real Redis: what one writes the other reads, and neither needs Redis to read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompts.errors import StoreError, StoreUnavailableError, SupersededError, UnknownClassifierError
from prompts.labels import Label
from prompts.redis_embeddings import RedisEmbeddings
from prompts.redis_store import RedisStore, connect
from prompts.store import ClassifierStore, DirectoryStore, StoredClassifier
from prompts.templates import TemplateSet
from tests.redis_server import RedisServer

LABELS = (Label("cat"), Label("dög", ("a puppy",)), Label("line\nbreak"))
MATRIX = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def stored(ticket: int, name: str = "pets", **changes: object) -> StoredClassifier:
    facts = {
        "name": name,
        "labels": LABELS,
        "template_set": TemplateSet(name="mine", templates=("a {label}",)),
        "model": "shapes",
        "model_digest": "ab" * 32,
        "created": "2025-01-02T03:04:05+00:00",
        "matrix": MATRIX,
        "ticket": ticket,
    }
    return StoredClassifier(**{**facts, **changes})


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


Opener = Callable[..., RedisStore]


@pytest.fixture
def open_store(redis: RedisServer) -> Iterator[Opener]:
    """Makes stores that share an empty Redis."""
    with redis.client() as client:
        client.flushall()
    opened: list[RedisStore] = []

    def make(**options: float) -> RedisStore:
        store = RedisStore(connect(redis.url, seconds=1.0), **options)
        store.refresh()
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def pair(open_store: Opener) -> tuple[RedisStore, RedisStore]:
    return open_store(), open_store()


Pair = tuple[RedisStore, RedisStore]


def test_what_one_puts_the_other_gets_bit_for_bit(pair: Pair):
    one, other = pair
    one.put(stored(one.ticket()))
    assert other.names() == ()
    other.refresh()
    assert other.names() == ("pets",)
    there = other.get("pets")
    assert there.content == one.get("pets").content
    np.testing.assert_array_equal(there.matrix, MATRIX)
    one.delete("pets")
    other.refresh()
    with pytest.raises(UnknownClassifierError, match="'pets'"):
        other.get("pets")
    with pytest.raises(UnknownClassifierError):
        other.delete("pets")


def test_what_has_not_changed_is_not_read_again(pair: Pair):
    one, other = pair
    one.put(stored(one.ticket()))
    other.refresh()
    before = other.get("pets")
    one.put(stored(one.ticket(), "birds"))
    other.refresh()
    assert other.get("pets") is before
    one.put(stored(one.ticket(), model="newer"))
    other.refresh()
    assert other.get("pets").model == "newer"


def test_prefixes_keep_deployments_apart(redis: RedisServer, open_store: Opener):
    one = open_store()
    one.put(stored(one.ticket()))
    elsewhere = RedisStore(connect(redis.url), prefix="other")
    elsewhere.refresh()
    assert elsewhere.names() == ()
    elsewhere.close()


def test_tickets_rise_whoever_takes_them(pair: Pair):
    taken = [store.ticket() for _ in range(50) for store in pair]
    assert taken == sorted(set(taken))
    assert abs(taken[-1] / 1e6 - time.time()) < 60


def a_directory(tmp_path: Path, _: Opener) -> ClassifierStore:
    return DirectoryStore(tmp_path)


def a_redis(_: Path, open_store: Opener) -> ClassifierStore:
    return open_store()


@pytest.mark.parametrize("make", [a_directory, a_redis])
def test_a_late_write_is_refused(
    tmp_path: Path, open_store: Opener, make: Callable[[Path, Opener], ClassifierStore]
):
    store = make(tmp_path, open_store)
    old, new = store.ticket(), store.ticket()
    store.put(stored(new, model="new"))
    assert store.superseded(stored(old))
    for late in (store.put, store.put_partial):
        with pytest.raises(SupersededError, match="'pets'"):
            late(stored(old, model="old"))
    assert store.get("pets").model == "new"
    store.delete("pets")
    with pytest.raises(SupersededError):
        store.put(stored(new))
    store.put(stored(store.ticket()))
    assert store.names() == ("pets",)


def test_another_process_sees_the_fence_too(pair: Pair):
    one, other = pair
    late = stored(one.ticket())
    other.put_partial(stored(other.ticket(), matrix=None))
    with pytest.raises(SupersededError):
        one.put(late)
    one.refresh()
    assert one.superseded(late)


def test_a_build_is_seen_and_can_be_taken_over(pair: Pair):
    one, other = pair
    begun = stored(one.ticket(), matrix=None)
    one.put_partial(begun)
    other.refresh()
    assert other.partial_names() == ("pets",)
    assert other.get_partial("pets").matrix is None
    one.put_partial(replace(begun, matrix=MATRIX[:2]))
    other.refresh()
    progress = other.progress("pets")
    assert (progress.stored.content, progress.done) == (begun.content, 2)
    assert progress.stored.matrix is None, "a matrix is loaded only by who goes on with it"
    np.testing.assert_array_equal(other.get_partial("pets").matrix, MATRIX[:2])
    one.put(replace(begun, matrix=MATRIX))
    other.refresh()
    assert (other.names(), other.partial_names()) == (("pets",), ())
    with pytest.raises(StoreError, match="2 of 3"):
        one.put(replace(begun, matrix=MATRIX[:2]))


def test_one_lease_for_one_content(pair: Pair):
    one, other = pair
    wanted = stored(0)
    lease = one.lease(wanted)
    assert lease is not None
    assert other.lease(wanted) is None
    assert other.lease(stored(0, model_digest="cd" * 32)) is not None
    assert one.lease(wanted) is not None, "a build that takes another's place in one process need not wait"
    lease.release()
    assert other.lease(wanted) is not None
    lease.release()
    assert one.lease(wanted) is None, "only the holder's own lease is released"


def test_a_lease_lasts_while_it_is_renewed_and_no_longer(open_store: Opener):
    one, other = open_store(lease_seconds=0.2), open_store()
    lease = one.lease(stored(0))
    for _ in range(4):
        time.sleep(0.1)
        lease.renew()
        assert other.lease(stored(0)) is None
    time.sleep(0.3)
    taken = other.lease(stored(0))
    assert taken is not None
    lease.renew()
    assert one.lease(stored(0)) is None, "a lost lease is not renewed"


def test_of_many_threads_one_gets_the_lease(open_store: Opener):
    stores = [open_store() for _ in range(6)]
    barrier, granted = threading.Barrier(len(stores)), []

    def attempt(store: RedisStore) -> None:
        barrier.wait()
        if store.lease(stored(0)) is not None:
            granted.append(store)

    threads = [threading.Thread(target=attempt, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 1


def test_bytes_that_are_damaged_spoil_nothing_else(redis: RedisServer, pair: Pair):
    one, other = pair
    one.put(stored(one.ticket()))
    one.put(stored(one.ticket(), "birds"))
    with redis.client() as client:
        client.hset("clipserve:classifiers", "pets", b"rubbish")
    other.refresh()
    assert (other.names(), set(other.broken)) == (("birds",), {"pets"})
    with pytest.raises(StoreError, match=r"'pets' cannot be read: .*checksum"):
        other.get("pets")
    other.put(stored(other.ticket()))
    assert other.broken == {}


def test_without_redis_memory_is_read_and_writes_are_refused(redis: RedisServer, pair: Pair):
    one, other = pair
    one.put(stored(one.ticket()))
    other.refresh()
    redis.stop()
    try:
        began = time.monotonic()
        for refused in (
            other.refresh,
            other.ticket,
            lambda: other.put(stored(1)),
            lambda: other.put_partial(stored(1)),
            lambda: other.delete("pets"),
            lambda: other.lease(stored(1)),
        ):
            with pytest.raises(StoreUnavailableError) as error:
                refused()
            assert "127.0.0.1" not in str(error.value)
        assert time.monotonic() - began < 5
        assert other.problem == "Redis cannot be reached"
        assert other.get("pets").labels == LABELS
        with pytest.raises(StoreUnavailableError, match="'cars'"):
            other.get("cars")
    finally:
        redis.start()


def test_a_redis_that_forgot_everything_is_given_it_back(redis: RedisServer, pair: Pair):
    one, other = pair
    one.put(stored(one.ticket()))
    one.put(stored(one.ticket(), "birds"))
    other.refresh()
    one.put(stored(one.ticket(), "cars"))
    redis.stop()
    redis.start()
    other.refresh()
    assert other.problem is None
    assert other.names() == ("birds", "pets")
    one.refresh()
    assert one.names() == ("birds", "cars", "pets")
    other.refresh()
    assert other.names() == ("birds", "cars", "pets")


def test_an_older_snapshot_takes_nothing_away(redis: RedisServer, open_store: Opener):
    """As after a restart from a file that was written before the last changes."""
    one = open_store()
    one.put(stored(one.ticket(), model="old"))
    with redis.client() as client:
        keys = {key: client.dump(key) for key in client.scan_iter()}
        one.put(stored(one.ticket(), model="new"))
        one.put(stored(one.ticket(), "birds"))
        client.flushall()
        for key, value in keys.items():
            client.restore(key, 0, value)
    one.refresh()
    assert (one.names(), one.get("pets").model) == (("birds", "pets"), "new")
    fresh = open_store()
    assert (fresh.names(), fresh.get("pets").model) == (("birds", "pets"), "new")


def test_a_url_that_is_none_is_refused():
    with pytest.raises(StoreError, match="Redis URL: "):
        connect("http://somewhere")


def test_embeddings_are_found_by_others_until_they_expire(redis: RedisServer):
    one, other = (RedisEmbeddings(connect(redis.url), seconds=60) for _ in range(2))
    keys = [bytes([number]) * 20 for number in range(4)]
    assert other.get_many(keys, dim=8) == [None] * 4
    one.put_many(keys[:3], MATRIX)
    rows = other.get_many(keys, dim=8)
    np.testing.assert_array_equal(np.stack(rows[:3]), MATRIX)
    assert rows[3] is None
    assert other.get_many(keys[:1], dim=9) == [None], "of another length: none of this model's"
    with redis.client() as client:
        assert 0 < client.ttl(b"clipserve:embedding:" + keys[0]) <= 60
        client.set(b"clipserve:embedding:" + keys[1], np.full(8, np.nan, np.float32).tobytes())
    assert other.get_many(keys[1:2], dim=8) == [None]
    for each in (one, other):
        each.close()


def test_embeddings_of_a_redis_that_is_gone_cost_one_attempt(redis: RedisServer):
    now = [0.0]
    embeddings = RedisEmbeddings(connect(redis.url, seconds=0.25), seconds=60, clock=lambda: now[0])
    keys = [b"k" * 20]
    redis.stop()
    try:
        assert embeddings.get_many(keys, dim=8) == [None]
    finally:
        redis.start()
    embeddings.put_many(keys, MATRIX[:1])
    now[0] = 1.0
    assert embeddings.get_many(keys, dim=8) == [None], "left alone for a while"
    now[0] = 3.0
    embeddings.put_many(keys, MATRIX[:1])
    np.testing.assert_array_equal(embeddings.get_many(keys, dim=8)[0], MATRIX[0])
    embeddings.close()


def test_a_folder_shows_what_another_process_does(tmp_path: Path):
    one, other = DirectoryStore(tmp_path), DirectoryStore(tmp_path)
    one.put(stored(one.ticket(), model="old"))
    one.put(stored(one.ticket(), "birds"))
    other.refresh()
    assert other.names() == ("birds", "pets")
    before = other.get("birds")
    one.put(stored(one.ticket(), model="new"))
    one.delete("birds")
    (tmp_path / "cars.classifier").write_bytes(b"rubbish")
    other.refresh()
    assert (other.names(), other.get("pets").model, set(other.broken)) == (("pets",), "new", {"cars"})
    one.put(replace(before, ticket=one.ticket()))
    other.refresh()
    assert other.names() == ("birds", "pets")


def test_what_redis_refuses_is_logged_and_its_words_stay_here(
    open_store: Opener, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    with redis.client() as client:
        client.set("clipserve:fences", "no hash")
    with pytest.raises(StoreError, match=r"^the store of classifiers refuses what it is asked$"):
        store.put(stored(store.ticket()))
    assert "WRONGTYPE" in caplog.text
