"""The benchmarks' arithmetic: a wrong ratio is worse than none."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from benchmarks import plan, report
from benchmarks.client import Load, _Run, ask
from benchmarks.conditions import cores_used_by_others, folder_name
from benchmarks.in_process import BATCH, BOTH, DECODE, DECODING, ENCODE
from benchmarks.measurements import Key, Measurements, Spread
from benchmarks.pictures import labels, photo
from benchmarks.requests import forms, raw

SUBJECT = "onnxruntime fp32"


@contextmanager
def answering(head: bytes, body: bytes, *, delay: float = 0.0) -> Iterator[int]:
    """A server that takes raw pictures of any size and answers each after ``delay`` seconds."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                length = next(line for line in lines if line.startswith("content-length"))
                await reader.readexactly(int(length.split(": ")[1]))
                await asyncio.sleep(delay)
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0.01))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def load(port: int, *, concurrency: int, items: int = 1) -> Load:
    requests = raw("/embed", [b"picture"])
    return Load(
        port=port,
        server_pid=os.getpid(),
        requests=requests,
        concurrency=concurrency,
        seconds=0.3,
        items=items,
    )


def test_the_client_measures_what_a_server_of_known_speed_does() -> None:
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok", delay=0.05) as port:
        figures = asyncio.run(_Run(load(port, concurrency=4, items=3)).figures())
    # Four connections, each 50 ms an answer, three items in it: at most 240 a second.
    assert 50 <= figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert 0 < figures["rate"] <= 4 * 3 / 0.05 * 1.05
    assert figures["requests"] >= 8


def test_an_answer_that_is_no_success_is_no_measurement() -> None:
    with (
        answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\n", b"busy") as port,
        pytest.raises(RuntimeError, match="503"),
    ):
        asyncio.run(_Run(load(port, concurrency=2)).figures())


def test_chunked_answers_are_read_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answering(head, b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n") as port:
        assert ask(port, raw("/", [b"x"])[0]) == b"abcdefg"


def test_the_limit_is_that_of_the_issue_and_ratios_are_taken_within_a_repeat() -> None:
    found = Measurements()
    for speed in (1.0, 2.0, 4.0):  # a machine that gets faster from repeat to repeat
        for key, rate in (
            (Key(DECODING, DECODE), 100.0),
            (Key(SUBJECT, ENCODE, 1), 40.0),
            (Key(SUBJECT, ENCODE, BATCH), 50.0),
            (Key(f"bare {SUBJECT}", ENCODE, BATCH), 80.0),
            (Key(SUBJECT, BOTH, BATCH), 60.0),
            (Key(SUBJECT, plan.RAW, 64), 66.0),
            (Key(SUBJECT, plan.FORM, 64), 33.0),
        ):
            found.add(key, {"rate": rate * speed})
        found.add(Key(SUBJECT, plan.START), {"seconds": 1.0})
    shown = {ratio.what: ratio.value for ratio in report.ratios(found, cores=4)}
    # The faster of both encoders, 80 a second, and 10 ms of decoding on each of 4 cores.
    limit = 1 / (1 / 80 + 0.010 / 4)
    assert shown["decode+encode limit"].least == pytest.approx(limit)
    ratio = shown[f"{plan.RAW}, 64 clients ÷ decode+encode limit"]
    assert (ratio.least, ratio.greatest) == pytest.approx((66 / limit, 66 / limit))
    assert shown[f"{plan.FORM}, 64 clients ÷ in process"].median == pytest.approx(0.55)


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert f"{Spread.of([3.0, 1.0, 10.0]):.1f}" == "3.0 (1.0 to 10.0)"


def test_pictures_are_photo_like_and_the_same_for_the_same_seed() -> None:
    first = photo(500, 375, seed=1)
    assert first == photo(500, 375, seed=1) != photo(500, 375, seed=2)
    assert 40_000 < len(first) < 90_000
    assert Image.open(io.BytesIO(first)).size == (500, 375)


def test_labels_stay_distinct_beyond_the_pairs_of_words() -> None:
    names = labels(10_000)
    assert len(set(names)) == len(names) == 10_000
    assert labels(10) == names[:10] != labels(10, seed=1)


def test_a_form_holds_its_pictures_and_fields() -> None:
    head, _, body = forms("/classify", [[b"one", b"two"]], [("labels", "cat")])[0].partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode().lower()
    assert body.count(b'name="image"') == 2
    assert b'name="labels"\r\n\r\ncat\r\n' in body


@pytest.mark.parametrize(
    ("cpu", "folder"),
    [
        ("AMD EPYC 9B14 96-Core Processor", "2026-01-02-amd-epyc-9b14-96-core-8c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "2026-01-02-intel-xeon-platinum-8481c-8c"),
    ],
)
def test_results_are_filed_by_day_and_processor(cpu: str, folder: str) -> None:
    assert folder_name({"date": "2026-01-02T10:00+00:00", "cpu": cpu, "cores": 8}) == folder


def test_work_of_other_processes_is_seen() -> None:
    under: dict[str, float] = {}
    code = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    stranger = subprocess.Popen([sys.executable, "-c", code])
    try:
        with cores_used_by_others(under):
            time.sleep(0.6)
    finally:
        stranger.wait()
    assert under["cores_used_by_others"] > 0.3
