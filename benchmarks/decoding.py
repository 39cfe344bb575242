"""One picture's file → pixels: the reference's steps, the exact path and the fast one, in turn.

Run: ``python -m benchmarks.decoding``. Prints milliseconds of one core's time, which neighbours distort less
than they do the clock, and the ratio of each path to the reference, taken within a repeat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.measurements import Spread
from benchmarks.pictures import photo
from models.manifest import ImageSpec
from models.preprocess import Preprocessor

_SHAPES = ((500, 375), (1600, 1200), (4000, 3000), (3000, 4000))
_REPEATS = 9
_SPEC = ImageSpec(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def reference(data: bytes) -> np.ndarray[Any, Any]:
    """What open_clip's transform does with Pillow, up to the tensor."""
    image = Image.open(BytesIO(data))
    short = min(image.size)
    width, height = (int(_SPEC.size * side / short) for side in image.size)
    left, top = round((width - _SPEC.size) / 2), round((height - _SPEC.size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + _SPEC.size, top + _SPEC.size)).convert("RGB"))


def main() -> None:
    paths = {
        "reference": reference,
        "exact": Preprocessor(_SPEC, max_pixels=2**26),
        "fast": Preprocessor(_SPEC, max_pixels=2**26, fast=True),
    }
    print(json.dumps(conditions()))
    for width, height in _SHAPES:
        data = photo(width, height, seed=1)
        if not np.array_equal(paths["exact"](data), reference(data)):
            raise RuntimeError(f"the exact path gives other pixels than the reference at {width}×{height}")
        spent: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(_REPEATS):
            for name, path in paths.items():
                spent[name].append(_milliseconds(path, data))
        print(f"{width}×{height}, {len(data) / 1000:.0f} kB")
        for name, times in spent.items():
            ratios = Spread.of(one / all_ for one, all_ in zip(times, spent["reference"], strict=True))
            print(f"  {name:9} {Spread.of(times):.2f} ms, ÷ reference {ratios:.2f}")


def _milliseconds(path: Callable[[bytes], object], data: bytes) -> float:
    """Of this thread's time for one picture; so many in a row that it can be measured."""
    rounds = max(1, 1_000_000 // len(data))
    began = time.thread_time()
    for _ in range(rounds):
        path(data)
    return 1000 * (time.thread_time() - began) / rounds


if __name__ == "__main__":
    main()
