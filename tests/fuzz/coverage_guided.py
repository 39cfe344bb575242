"""``python -m tests.fuzz.coverage_guided RUNS FOLDER``: atheris on the decoder, guided by what Pillow does.

Ends with 0 when none of RUNS pictures did anything but give pixels or be refused. What did is in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "models"]):
    from models.errors import ImageError
    from models.manifest import ImageSpec
    from models.preprocess import Preprocessor

from tests.fuzz.mutations import seeds

_SIZE = 32
_decode = Preprocessor(ImageSpec(size=_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3), max_pixels=2_000_000)


def decode(data: bytes) -> None:
    """Anything but pixels of the right shape or an error of our own is a find."""
    try:
        pixels = _decode(data)
    except ImageError:
        return
    assert pixels.shape == (_SIZE, _SIZE, 3)


def main(runs: str, folder: str) -> None:
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for number, picture in enumerate(seeds()):
        (corpus / str(number)).write_bytes(picture)
    options = {"runs": runs, "seed": 1, "timeout": 10, "rss_limit_mb": 2048, "artifact_prefix": f"{folder}/"}
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
