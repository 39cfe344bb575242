"""What HTTP, queue and threads add to a lone picture: a request and the same work without a server, in turn.

Taken apart by minutes, the two would differ by what the machine did meanwhile, which is more than the
difference that is looked for; in turn, it falls on both alike. Both find caches as cold and threads as fast
asleep as a lone request does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from statistics import median

from benchmarks.measurements import Key
from benchmarks.subjects import MODEL, Configuration
from models.registry import ModelRegistry

IN_TURN = "one picture, HTTP less decode + encode, in turn"
_WARM_UP = 5


def in_turn(
    models: Path, configuration: Configuration, port: int, pictures: Sequence[bytes], seconds: float
) -> list[tuple[Key, dict[str, float]]]:
    """The median of the differences, and of both sides, in milliseconds."""
    model = ModelRegistry(models, options=configuration.options).load(MODEL)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    pairs: list[tuple[float, float]] = []
    began, pieces = time.perf_counter(), cycle(pictures)
    while len(pairs) < 2 * _WARM_UP or time.perf_counter() - began < seconds:
        picture = next(pieces)
        served = _milliseconds(partial(_ask, connection, picture))
        pairs.append((served, _milliseconds(partial(model.encode_images, [picture]))))
    connection.close()
    model.close()
    pairs = pairs[_WARM_UP:]
    figures = {
        "extra_ms": median(served - bare for served, bare in pairs),
        "served_ms": median(served for served, _ in pairs),
        "bare_ms": median(bare for _, bare in pairs),
        "pairs": float(len(pairs)),
    }
    return [(Key(configuration.name, IN_TURN), figures)]


def _ask(connection: HTTPConnection, picture: bytes) -> None:
    connection.request("POST", "/embed", picture, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {body[:300]!r}")


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)
