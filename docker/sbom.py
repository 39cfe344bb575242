"""Prints the software bill of materials of a serving environment, as CycloneDX 1.6: see ``make sbom``.

Made from what is installed here, so it needs no network. cyclonedx-py describes everything that is installed
and all it might depend on; what is printed is what clipserve needs with the extras that are given.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_ROOT = "root-component"


def main(extras: list[str]) -> None:
    """Print the document."""
    document = _describe_all()
    needed = needed_by("clipserve", extras)
    components = {canonicalize_name(one["name"]): one for one in document["components"]}
    refs = {name: _ROOT if name == "clipserve" else components[name]["bom-ref"] for name in needed}
    document["components"] = [one for name, one in components.items() if name in needed]
    document["dependencies"] = [
        {"ref": refs[name], "dependsOn": sorted(refs[one] for one in depends_on)}
        for name, depends_on in sorted(needed.items())
    ]
    json.dump(document, sys.stdout, indent=2)


def needed_by(name: str, extras: Collection[str] = ()) -> dict[str, set[str]]:
    """A distribution and all it needs on this machine, each with the names of what it needs itself."""
    needed: dict[str, set[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), frozenset(extras))]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        requirements = list(_requirements(*one))
        needed.setdefault(one[0], set()).update(canonicalize_name(each.name) for each in requirements)
        waiting += [(canonicalize_name(each.name), frozenset(each.extras)) for each in requirements]
    return needed


def _requirements(name: str, extras: Collection[str]) -> Iterator[Requirement]:
    try:
        written = _own(extras) if name == "clipserve" else requires(name) or []
    except PackageNotFoundError:
        sys.exit(f"sbom: {name} is needed and not installed")
    for requirement in map(Requirement, written):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _own(extras: Collection[str]) -> list[str]:
    """From the project's file: what is installed of clipserve itself may be older than that."""
    project = tomllib.loads(_PYPROJECT.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(one for extra in extras for one in optional[extra])]


def _describe_all() -> dict[str, Any]:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(_PYPROJECT)]
    # Not checked before most of it is thrown out: that takes half a minute.
    options = ["--spec-version", "1.6", "--output-reproducible", "--no-validate", sys.executable]
    printed = subprocess.run(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    document: dict[str, Any] = json.loads(printed.stdout)
    return document


if __name__ == "__main__":
    main(sys.argv[1:])
