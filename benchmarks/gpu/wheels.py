"""What ``make bench-gpu`` needs, for a machine that reaches no package registry.

    python benchmarks/gpu/wheels.py collect PARTS       here: download, and cut into parts of 50 MiB
    python benchmarks/gpu/wheels.py install PARTS SITE  there: put together, and install into SITE
    PYTHONPATH=SITE python -m benchmarks.gpu.run        there

The machine has Python 3.12 on x86-64 and PyTorch for CUDA 13, whose CUDA libraries ONNX Runtime is given
too. This file needs nothing but Python and pip.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PART_BYTES = 50 * 2**20
_PYTHON = "3.12"
_GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 39)  # pip takes the versions it is told and no older ones
# What exports and runs models; PyTorch, which it stands on, is there already and would be gigabytes.
_ALONE = (
    *("onnxruntime-gpu", "open_clip_torch", "timm", "ftfy", "wcwidth", "nvidia-ml-py"),
    *("onnx", "onnxscript", "onnx-ir", "ml_dtypes"),
)


def main() -> None:
    """Read the options, and do one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collect_them = commands.add_parser("collect", help="download wheels into parts")
    collect_them.add_argument("parts", type=Path)
    install_them = commands.add_parser("install", help="put parts together and install them")
    install_them.add_argument("parts", type=Path)
    install_them.add_argument("site", type=Path)
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.parts)
    else:
        install(options.parts, options.site)


def collect(parts: Path) -> None:
    """Download every wheel, and write them as parts into the folder ``parts``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as folder:
        _download(Path(folder), project["dependencies"])
        _download(Path(folder), ["--no-deps", *_ALONE])
        for part in pack(sorted(Path(folder).glob("*.whl")), parts):
            print(part, f"{part.stat().st_size / 2**20:.0f} MiB")


def install(parts: Path, site: Path) -> None:
    """Install what ``collect`` wrote into the folder ``site``, which goes into PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = unpack(parts, Path(folder))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", str(site), *map(str, wheels)], check=True)
    # ONNX Runtime looks for CUDA's libraries beside itself.
    if (found := importlib.util.find_spec("nvidia")) and not (site / "nvidia").exists():
        (site / "nvidia").symlink_to(next(iter(found.submodule_search_locations or [])))


def pack(files: Iterable[Path], parts: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write ``files`` into ``parts / wheels.000`` and so on, each of at most ``part_bytes``."""
    parts.mkdir(parents=True, exist_ok=True)
    whole = parts / "wheels.tar"
    with tarfile.open(whole, "w") as archive:
        for file in files:
            archive.add(file, file.name)
    written = []
    with whole.open("rb") as stream:
        while piece := stream.read(part_bytes):
            written.append(parts / f"wheels.{len(written):03}")
            written[-1].write_bytes(piece)
    whole.unlink()
    return written


def unpack(parts: Path, folder: Path) -> list[Path]:
    """Put parts together again; gives the files, which lie in ``folder``."""
    whole = folder / "wheels.tar"
    with whole.open("wb") as stream:
        for part in sorted(parts.glob("wheels.[0-9][0-9][0-9]")):
            stream.write(part.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(folder, filter="data")
    whole.unlink()
    return sorted(folder.iterdir())


def _download(folder: Path, what: Iterable[str]) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    target = ["--python-version", _PYTHON, "--implementation", "cp", *_platforms()]
    subprocess.run([*pip, *constraint, *target, *what], check=True)


def _platforms() -> Iterator[str]:
    for tag in (
        "manylinux1",
        "manylinux2010",
        "manylinux2014",
        *(f"manylinux_2_{minor}" for minor in _GLIBC),
    ):
        yield from ("--platform", f"{tag}_x86_64")


if __name__ == "__main__":
    main()
