"""The figures of a GPU run as tables."""

from __future__ import annotations

from benchmarks.gpu.encoders import ENCODE, PARITY, SOAK
from benchmarks.in_process import DECODE, DECODING
from benchmarks.layout import Layout
from benchmarks.measurements import Key, Measurements
from benchmarks.report import Sheet

JPEG, PIXELS = "JPEG 500×375", "BMP of the model's size"


def service(architecture: str, layout: Layout) -> str:
    """A server, by its model and its processes."""
    return f"service, {architecture}, {layout}"


def sheets(found: Measurements, cores: int) -> list[Sheet]:
    """Every table."""
    return [_encoders(found), _parity(found), _service(found, cores), _soak(found)]


def _encoders(found: Measurements) -> Sheet:
    keys = [key for key in found.samples if key.measure == ENCODE]
    batches = sorted({key.width for key in keys})
    rows = [
        [subject, *(_shown(found, Key(subject, ENCODE, batch), "rate", ".0f") for batch in batches)]
        for subject in dict.fromkeys(key.subject for key in keys)
    ]
    columns = ("encoder", *(f"batch {batch}" for batch in batches))
    return Sheet(title="Pictures a second, pixels in", columns=columns, rows=rows)


def _parity(found: Measurements) -> Sheet:
    figures = ("image_cosine", "text_cosine", "top1")
    rows = [
        [key.subject, *(_shown(found, key, figure, ".6f") for figure in figures)]
        for key in found.samples
        if key.measure == PARITY
    ]
    columns = ("encoder", "smallest picture cosine", "smallest text cosine", "equal top-1")
    return Sheet(title="Against ONNX Runtime in fp32 on the CPU", columns=columns, rows=rows)


def _service(found: Measurements, cores: int) -> Sheet:
    decode = _value(found, Key(DECODING, DECODE, cores), "rate")
    rows = []
    for key in found.samples:
        if key.measure not in {JPEG, PIXELS}:
            continue
        rate, limit = _value(found, key, "rate"), decode if key.measure == JPEG else None
        cells = [key.subject, key.measure, str(key.width), f"{rate:.0f}"]
        cells += [f"{rate / limit:.2f}" if rate and limit else ""]
        cells += [
            _shown(found, key, figure, ".1f") for figure in ("p50_ms", "p99_ms", "gpu_percent", "gpu_mb")
        ]
        rows.append(cells)
    title = f"Over HTTP; {cores} cores decode {decode:.0f} JPEGs a second" if decode else "Over HTTP"
    columns = (
        *("server", "pictures", "clients", "pictures/s", "÷ decode limit", "p50 ms", "p99 ms"),
        *("GPU %", "GPU MB"),
    )
    return Sheet(title=title, columns=columns, rows=rows)


def _soak(found: Measurements) -> Sheet:
    rows = [
        [key.subject, *(_shown(found, key, f"{where}_growth_mb", "+.0f") for where in ("device", "resident"))]
        for key in found.samples
        if key.measure == SOAK
    ]
    columns = ("encoder", "GPU memory, MB", "process memory, MB")
    return Sheet(title="Growth under batches of changing size", columns=columns, rows=rows)


def _value(found: Measurements, key: Key, figure: str) -> float | None:
    return found.spread(key, figure).median if figure in found.samples.get(key, {}) else None


def _shown(found: Measurements, key: Key, figure: str, form: str) -> str:
    value = _value(found, key, figure)
    return "-" if value is None else f"{value:{form}}"
