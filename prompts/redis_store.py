"""Named classifiers shared through Redis. Serving reads memory; Redis is only asked what has changed.

Keys, each behind the store's prefix:

- ``classifiers``, ``checkpoints``, ``builds``: hashes from a name to the bytes of ``stored.to_bytes``; a
  build is a checkpoint without its matrix, so that other processes see it without loading it.
- ``progress``: hash from a name to the labels done.
- ``versions``: hash from a name to the revision at which the classifier was written.
- ``fences``: hash from a name to the highest ticket accepted; a write with a lower one is refused. It
  remembers deleted names too, so that a late write brings none back.
- ``revision``, ``ticket``: counters. ``epoch``: a random text that is lost together with everything else.
- ``lease:…``: who builds what, with an expiry.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from prompts import redis_scripts as scripts
from prompts.errors import (
    PromptError,
    StoreError,
    StoreUnavailableError,
    SupersededError,
    UnknownClassifierError,
)
from prompts.store import Lease, Progress, check_whole
from prompts.stored import StoredClassifier, from_bytes, to_bytes

log = logging.getLogger(__name__)

_PREFIX = "clipserve"
_LOST = (RedisConnectionError, RedisTimeoutError)


class _Moment(NamedTuple):
    epoch: bytes
    revision: int


def connect(url: str, *, seconds: float = 5.0) -> Redis:
    """A client for ``redis://``, ``rediss://`` or ``unix://``; opens no connection yet.

    ``seconds`` limits each reply. Only a connection that was closed meanwhile is tried a second time.

    Raises:
        StoreError: the URL is none that Redis knows.
    """
    try:
        client: Redis = Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=min(seconds, 1.0),
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
    except ValueError:  # its text may quote a part of the password
        raise StoreError(
            "Redis URL: is none; it is redis://user:password@host:port/database,"
            " and what is special in a password is written as %XX"
        ) from None
    return client


class RedisStore:
    """Meets ``ClassifierStore``: every process has every classifier in memory, Redis holds them between.

    A Redis that cannot be reached is a ``problem``, never an error of what only reads. A Redis that came
    back empty, or older than what is known here, is given what it lost.

    ``lease_seconds``: how long a build stays with a process that no longer renews its lease.
    """

    def __init__(self, client: Redis, *, prefix: str = _PREFIX, lease_seconds: float = 10.0) -> None:
        self._client = client
        self._prefix = prefix
        self._lease_milliseconds = int(1000 * lease_seconds)
        self._token = secrets.token_hex(16)
        self._writing = Lock()
        self._seen: _Moment | None = None
        self._newest = 0  # the highest revision known, be it of a write of our own
        self._problem: str | None = "Redis has not been asked yet"
        # Replaced, never changed, so that readers need no lock.
        self._loaded: dict[str, StoredClassifier] = {}
        self._broken: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._fences: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}

    @property
    def problem(self) -> str | None:
        """Why Redis could not be reached the last time, if it could not."""
        return self._problem

    @property
    def broken(self) -> dict[str, str]:
        """Names whose bytes in Redis cannot be read, and why."""
        return self._broken

    def names(self) -> tuple[str, ...]:
        """Names of the readable classifiers, sorted."""
        return tuple(sorted(self._loaded))

    def partial_names(self) -> tuple[str, ...]:
        """Names of the unfinished builds of all processes, sorted."""
        return tuple(sorted(self._progress))

    def get(self, name: str) -> StoredClassifier:
        """The classifier of that name, from memory.

        Raises:
            UnknownClassifierError: there is none.
            StoreUnavailableError: none is known here, and Redis cannot be asked.
            StoreError: there is one, and its bytes cannot be read.
        """
        if (found := self._loaded.get(name)) is not None:
            return found
        if name in self._broken:
            raise StoreError(f"classifier {name!r} cannot be read: {self._broken[name]}")
        if self._problem is not None:
            raise StoreUnavailableError(
                f"classifier {name[:80]!r} is not known here, and the store cannot be asked now"
            )
        raise UnknownClassifierError(f"classifier: none is named {name[:80]!r}")

    def progress(self, name: str) -> Progress | None:
        """How far the unfinished build of that name has come, as of the last ``refresh``."""
        return self._progress.get(name)

    def superseded(self, classifier: StoredClassifier) -> bool:
        """Whether, as of the last ``refresh``, a newer write or a deletion of its name is known."""
        return self._fences.get(classifier.name, 0) > classifier.ticket

    def refresh(self) -> None:
        """Load what has changed; give back what Redis has lost.

        Raises:
            StoreUnavailableError: Redis cannot be reached.
        """
        with self._writing, self._reaching():
            now = self._now()
            if now == self._seen:
                return
            if self._has_lost_memory(now):
                self._give_back()
            self._load()
            self._seen, self._newest = now, now.revision

    def ticket(self) -> int:
        """The time of Redis in microseconds, or one more than the last ticket."""
        with self._reaching():
            return int(self._client.eval(scripts.TICKET, 1, self._key("ticket")))

    def lease(self, classifier: StoredClassifier) -> Lease | None:
        """The right to build this content under this name; None while another store object has it."""
        content = hashlib.blake2b(repr(classifier.content).encode(), digest_size=16).hexdigest()
        key = self._key(f"lease:{classifier.name}:{content}")
        granted = self._run(scripts.LEASE, [key], self._token, self._lease_milliseconds)
        return _RedisLease(self._run, key, self._token, self._lease_milliseconds) if granted else None

    def get_partial(self, name: str) -> StoredClassifier | None:
        """The checkpoint of that name as it is in Redis, or its beginning if none has been written."""
        begun = self._progress.get(name)
        with self._reaching():
            data: Any = self._client.hget(self._key("checkpoints"), name)
        if begun is None or data is None:
            return None if begun is None else begun.stored
        try:
            return from_bytes(data)
        except PromptError as error:
            log.warning("checkpoint of classifier %s is skipped: %s", name, error)
            return begun.stored

    def put(self, classifier: StoredClassifier) -> None:
        """Keep a classifier, in place of any of its name, and drop its checkpoint.

        Raises:
            SupersededError: a newer write or a deletion of its name has been accepted.
            StoreUnavailableError: Redis cannot be reached.
            StoreError: it is half built, or Redis refuses it.
        """
        check_whole(classifier)
        name = classifier.name
        with self._writing:
            revision = self._write(scripts.PUT, classifier, to_bytes(classifier))
            self._loaded = {**self._loaded, name: classifier}
            self._versions = {**self._versions, name: revision}
            self._broken = _without(self._broken, name)
            self._progress = _without(self._progress, name)

    def put_partial(self, classifier: StoredClassifier) -> None:
        """Keep a checkpoint, in place of any of its name; without a matrix, only say that it has begun.

        Raises:
            SupersededError: a newer write or a deletion of its name has been accepted.
            StoreUnavailableError: Redis cannot be reached.
            StoreError: Redis refuses it.
        """
        begun = replace(classifier, matrix=None)
        checkpoint = b"" if classifier.matrix is None else to_bytes(classifier)
        with self._writing:
            self._write(scripts.PUT_PARTIAL, classifier, to_bytes(begun), classifier.done, checkpoint)
            progress = Progress(stored=begun, done=classifier.done)
            self._progress = {**self._progress, classifier.name: progress}

    def delete(self, name: str) -> None:
        """Remove a classifier, readable or not, and its checkpoint.

        Raises:
            UnknownClassifierError: there is neither.
            StoreUnavailableError: Redis cannot be reached.
        """
        ticket = self.ticket()
        with self._writing:
            revision = self._run(scripts.DELETE, self._keys(), name, ticket)
            if revision == -1:
                raise UnknownClassifierError(f"classifier: none is named {name[:80]!r}")
            self._newest = revision
            self._fences = {**self._fences, name: ticket}
            self._loaded = _without(self._loaded, name)
            self._versions = _without(self._versions, name)
            self._broken = _without(self._broken, name)
            self._progress = _without(self._progress, name)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def _write(self, script: str, classifier: StoredClassifier, *values: bytes | int) -> int:
        revision: int = self._run(script, self._keys(), classifier.name, classifier.ticket, *values)
        if not revision:
            raise SupersededError(f"{classifier.name!r}: was stored anew, or deleted, meanwhile")
        self._newest = revision
        self._fences = {**self._fences, classifier.name: classifier.ticket}
        return revision

    def _has_lost_memory(self, now: _Moment) -> bool:
        """Whether Redis came back without all it had, or with a snapshot from before the last change."""
        return self._seen is not None and (now.epoch != self._seen.epoch or now.revision < self._newest)

    def _give_back(self) -> None:
        """Write what is known here and not there any more; a newer one that is there already stays."""
        log.warning("Redis has lost classifiers; what is known here is written back")
        there = set(self._client.hkeys(self._key("classifiers")))
        fences = _numbers(self._client.hgetall(self._key("fences")))
        for name, classifier in self._loaded.items():
            if name.encode() not in there or fences.get(name, 0) < classifier.ticket:
                self._run(scripts.PUT, self._keys(), name, classifier.ticket, to_bytes(classifier))
        self._versions = {}  # revisions are counted anew

    def _load(self) -> None:
        """Read what Redis has, and the bytes of what has another version than here."""
        with self._client.pipeline(transaction=True) as pipeline:
            for name in ("versions", "fences", "progress"):
                pipeline.hgetall(self._key(name))
            versions, fences, progress = (_numbers(reply) for reply in pipeline.execute())
        loaded, broken = dict(self._loaded), dict(self._broken)
        for name in (loaded.keys() | broken.keys()) - versions.keys():
            loaded.pop(name, None)
            broken.pop(name, None)
        for name in [name for name, version in versions.items() if version != self._versions.get(name)]:
            try:
                loaded[name] = self._read("classifiers", name)
                broken.pop(name, None)
            except PromptError as error:
                log.warning("classifier %s in Redis is skipped: %s", name, error)
                loaded.pop(name, None)
                broken[name] = str(error)
        self._progress = dict(self._load_progress(progress, fences))
        self._loaded, self._broken, self._versions, self._fences = loaded, broken, versions, fences

    def _load_progress(
        self, progress: dict[str, int], fences: dict[str, int]
    ) -> Iterator[tuple[str, Progress]]:
        for name, done in progress.items():
            known = self._progress.get(name)
            try:
                begun = (
                    known.stored
                    if known is not None and known.stored.ticket == fences.get(name)
                    else self._read("builds", name)
                )
            except PromptError:
                continue  # just finished, or never readable: nobody here can go on with it
            yield name, Progress(stored=begun, done=done)

    def _read(self, key: str, name: str) -> StoredClassifier:
        data: Any = self._client.hget(self._key(key), name)
        if data is None:
            raise StoreError("it has just been removed")
        classifier = from_bytes(data)
        if classifier.name != name:
            raise StoreError(f"it holds {classifier.name!r}")
        return classifier

    def _now(self) -> _Moment:
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.set(self._key("epoch"), secrets.token_hex(16), nx=True)
            pipeline.get(self._key("epoch"))
            pipeline.get(self._key("revision"))
            _, epoch, revision = pipeline.execute()
        return _Moment(epoch, int(revision or 0))

    def _run(self, script: str, keys: list[str], *values: str | bytes | int) -> int:
        with self._reaching():
            answer: Any = self._client.eval(script, len(keys), *keys, *values)
        return int(answer or 0)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            # Its own text has the address in it, which is no client's business.
            if self._problem is None:
                log.warning("Redis cannot be reached, serving goes on from memory: %s", error)
            self._problem = "Redis cannot be reached"
            raise StoreUnavailableError("the store of classifiers cannot be reached now") from error
        except RedisError as error:
            log.warning("Redis refuses: %s", error)  # its words may be about users, keys or memory
            raise StoreError("the store of classifiers refuses what it is asked") from error
        if self._problem is not None:
            log.info("Redis can be reached")
        self._problem = None

    def _keys(self) -> list[str]:
        return [self._key(name) for name in scripts.WRITTEN]

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"


class _RedisLease:
    """Meets ``Lease``: a key that only its holder's token renews or removes."""

    def __init__(self, run: Callable[..., int], key: str, token: str, milliseconds: int) -> None:
        self._run = run
        self._key = key
        self._token = token
        self._milliseconds = milliseconds

    def renew(self) -> None:
        self._run(scripts.RENEW, [self._key], self._token, self._milliseconds)

    def release(self) -> None:
        self._run(scripts.RELEASE, [self._key], self._token)


def _numbers(reply: Any) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in reply.items()}


def _without(entries: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != name}
