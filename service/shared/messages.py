"""What fronts and the engine process say to each other, as bytes: nothing that would be executed.

Numbers are little-endian. A call is numbered by the front that makes it; its answer has the same number.
"""

from __future__ import annotations

import math
import struct
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.batcher import Answer, BatcherStoppedError, DeadlineExceededError, Lane, QueueFullError
from service.served import Features, NonFiniteFeaturesError
from service.shared.frames import MalformedMessageError

_LANES: tuple[Lane, ...] = ("interactive", "bulk")
_RING = struct.Struct("<II")  # slots, bytes of a slot
_CALL = struct.Struct("<Q")
_SUBMISSION = struct.Struct("<QHBdI")  # call, queue, lane, deadline, items
_ANSWER = struct.Struct("<QddIII")  # call, run seconds, expected wait, batch size, items, dimension
_REFUSAL = struct.Struct("<QBd")  # call, error, retry after
_LENGTH = struct.Struct("<I")


class Kind(IntEnum):
    """The kinds of messages."""

    GREETING = 1
    SUBMISSION = 2
    CANCELLATION = 3
    ANSWER = 4
    REFUSAL = 5


class EncoderFailedError(RuntimeError):
    """An encoder raised in the engine process; the traceback from there is in a note."""


# An error is told by its place here; what is not here comes as an EncoderFailedError, which is place 0.
_ERRORS: tuple[type[Exception], ...] = (
    EncoderFailedError,
    DeadlineExceededError,
    BatcherStoppedError,
    QueueFullError,
    NonFiniteFeaturesError,
)
_FINE = 255  # in the place of an item's error, where there is none


@dataclass(frozen=True, kw_only=True)
class QueueFacts:
    """A queue of the engine process: its number, and how many items its encoder runs at once, at most."""

    number: int
    in_flight: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model of the engine process; ``running`` is that of ``LoadedModel``, ``queues`` go by encoder."""

    digest: str
    running: dict[str, Any]
    queues: dict[str, QueueFacts]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Items for a queue. ``items`` are slots or tokens, packed; ``deadline`` is as in ``Batcher.submit``."""

    queue: int
    lane: Lane
    deadline: float | None
    count: int
    items: bytes


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How a submission ended; ``expected_wait`` is that of its queue."""

    answer: Answer[Features]
    expected_wait: float


# What is said before there is a connection


def pack_ring(*, slots: int, slot_bytes: int) -> bytes:
    """A front asks for a connection, and tells how its shared memory is divided."""
    return _RING.pack(slots, slot_bytes)


def unpack_ring(data: bytes) -> tuple[int, int]:
    """Slots, and bytes of a slot."""
    return _RING.unpack(data)


# From the engine process


def pack_greeting(models: Mapping[str, ModelFacts]) -> bytes:
    """What the engine process serves, by name."""
    return orjson.dumps(models)


def unpack_greeting(body: bytes) -> dict[str, ModelFacts]:
    """What ``pack_greeting`` was given."""
    return {
        name: ModelFacts(
            digest=one["digest"],
            running=one["running"],
            queues={encoder: QueueFacts(**facts) for encoder, facts in one["queues"].items()},
        )
        for name, one in orjson.loads(body).items()
    }


def pack_answer(call: int, answered: Answered) -> Iterator[bytes]:
    """Features of the items that have some, then the errors of the others."""
    answer = answered.answer
    rows = [one for one in answer.outcomes if not isinstance(one, Exception)]
    errors = [one for one in answer.outcomes if isinstance(one, Exception)]
    yield _ANSWER.pack(
        *(call, answer.run_seconds, answered.expected_wait, answer.batch_size, len(answer.outcomes)),
        len(rows[0]) if rows else 0,
    )
    yield bytes(_error_code(one) if isinstance(one, Exception) else _FINE for one in answer.outcomes)
    yield from (row.tobytes() for row in rows)
    for error in errors:
        text = _error_text(error).encode()
        yield _LENGTH.pack(len(text)) + text


def unpack_answer(body: bytes) -> tuple[int, Answered]:
    """The call, and how it ended; how long the items waited is left open."""
    call, run_seconds, expected_wait, batch_size, count, dim = _ANSWER.unpack_from(body)
    codes = body[_ANSWER.size : _ANSWER.size + count]
    fine = codes.count(_FINE)
    start = _ANSWER.size + count
    end = start + 4 * fine * dim
    rows = iter(np.frombuffer(body[start:end], np.float32).reshape(fine, dim).copy())
    errors = _unpack_errors(body[end:], [code for code in codes if code != _FINE])
    outcomes: list[Features | Exception] = [next(rows) if code == _FINE else next(errors) for code in codes]
    answer = Answer(outcomes=outcomes, queue_seconds=0.0, run_seconds=run_seconds, batch_size=batch_size)
    return call, Answered(answer=answer, expected_wait=expected_wait)


def pack_refusal(call: int, error: Exception) -> bytes:
    """A submission was not taken, or was given up."""
    retry_after = error.retry_after if isinstance(error, QueueFullError) else 0.0
    return _REFUSAL.pack(call, _error_code(error), retry_after) + _error_text(error).encode()


def unpack_refusal(body: bytes) -> tuple[int, Exception]:
    """The call, and why."""
    call, code, retry_after = _REFUSAL.unpack_from(body)
    error = _error(code, body[_REFUSAL.size :].decode())
    if isinstance(error, QueueFullError):
        error.retry_after = retry_after
    return call, error


# From a front


def pack_submission(call: int, submission: Submission) -> tuple[bytes, bytes]:
    """Its facts and its items."""
    deadline = math.inf if submission.deadline is None else submission.deadline
    head = _SUBMISSION.pack(
        *(call, submission.queue, _LANES.index(submission.lane), deadline, submission.count)
    )
    return head, submission.items


def unpack_submission(body: bytes) -> tuple[int, Submission]:
    """What ``pack_submission`` was given."""
    call, queue, lane, deadline, count = _SUBMISSION.unpack_from(body)
    submission = Submission(
        queue=queue,
        lane=_LANES[lane],
        deadline=None if deadline == math.inf else deadline,
        count=count,
        items=body[_SUBMISSION.size :],
    )
    return call, submission


def pack_cancellation(call: int) -> bytes:
    """Nobody waits for that call any more."""
    return _CALL.pack(call)


def unpack_cancellation(body: bytes) -> int:
    """The call."""
    number: int = _CALL.unpack(body)[0]
    return number


def pack_slots(slots: Sequence[int]) -> bytes:
    """Pictures by the slots they lie in."""
    return np.asarray(slots, np.uint32).tobytes()


def unpack_slots(items: bytes, count: int) -> list[int]:
    """What ``pack_slots`` was given."""
    slots: list[int] = np.frombuffer(items, np.uint32).tolist()
    if len(slots) != count:
        raise MalformedMessageError(f"{len(slots)} slots for {count} pictures")
    return slots


def pack_tokens(tokens: Sequence[NDArray[np.int64]]) -> bytes:
    """Token sequences, int64 (length,) each: their lengths, then all of their ids."""
    lengths = np.asarray([len(ids) for ids in tokens], np.uint32)
    return lengths.tobytes() + b"".join(ids.tobytes() for ids in tokens)


def unpack_tokens(items: bytes, count: int) -> list[NDArray[np.int64]]:
    """What ``pack_tokens`` was given."""
    lengths = np.frombuffer(items[: 4 * count], np.uint32)
    ids = np.frombuffer(items[4 * count :], np.int64)
    if len(lengths) != count or int(lengths.sum()) != len(ids):
        raise MalformedMessageError(f"{len(ids)} token ids for {count} texts")
    return np.split(ids, np.cumsum(lengths)[:-1])


# Errors


def _error_code(error: Exception) -> int:
    return next((code for code, kind in enumerate(_ERRORS) if code and isinstance(error, kind)), 0)


def _error_text(error: Exception) -> str:
    return str(error) if _error_code(error) else "".join(traceback.format_exception(error))


def _unpack_errors(data: bytes, codes: Sequence[int]) -> Iterator[Exception]:
    place = 0
    for code in codes:
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size + length
        yield _error(code, data[place - length : place].decode())


def _error(code: int, text: str) -> Exception:
    if code:
        return _ERRORS[code](text)
    error = EncoderFailedError(text.rstrip().rpartition("\n")[2])
    error.add_note(f"in the engine process: {text}")
    return error
