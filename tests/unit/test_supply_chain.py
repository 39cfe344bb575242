"""What clipserve is made of: pinned, and listed in a bill of materials."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SERVING = ["cpu", "redis", "otel"]
needed_by = runpy.run_path(str(ROOT / "docker" / "sbom.py"))["needed_by"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    found = [line.split("==") for line in lines]
    assert len({canonicalize_name(name) for name, _ in found}) == len(found), "one pin a package"
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_whatever_an_extra_asks_for_is_pinned_to_a_version_it_allows(extra: str) -> None:
    pinned = pins()
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        name = canonicalize_name(requirement.name)
        if name != "clipserve":
            assert requirement.specifier.contains(pinned[name]), requirement


def test_make_lock_knows_every_extra() -> None:
    (named,) = re.findall(r"'\.\[(\S+)\]' > constraints\.json", (ROOT / "Makefile").read_text())
    assert set(named.split(",")) == set(EXTRAS)


def test_so_is_whatever_that_needs_in_turn() -> None:
    """Of the extras that tests run with: others may not be installed."""
    needed = set(needed_by("clipserve", {"cpu", "export", "dev"})) - {"clipserve"}
    assert {"starlette", "torch", "redis", "pluggy"} <= needed
    assert needed - set(pins()) == set()


def test_the_bill_of_materials_is_valid_and_lists_what_serving_needs_as_it_is_pinned() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "docker" / "sbom.py", *SERVING], capture_output=True, check=True, timeout=120
    ).stdout.decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made) is None
    document = json.loads(made)
    listed = {canonicalize_name(one["name"]): one["version"] for one in document["components"]}
    needed = set(needed_by("clipserve", SERVING)) - {"clipserve"}
    assert {"fastapi", "starlette", "numpy", "onnxruntime", "openvino", "redis", "protobuf"} <= needed
    assert listed == {name: version for name, version in pins().items() if name in needed}
    assert not {"torch", "pytest", "pyarrow"} & set(listed)
    assert document["metadata"]["component"]["name"] == "clipserve"
    graph = {one["ref"]: set(one.get("dependsOn", [])) for one in document["dependencies"]}
    assert set(graph) == {one["bom-ref"] for one in document["components"]} | {"root-component"}
    assert all(depends_on <= set(graph) for depends_on in graph.values())


def test_make_sbom_lists_the_extras_of_the_image() -> None:
    dockerfile, makefile = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r'^ARG EXTRAS="(.+)"$', dockerfile, flags=re.MULTILINE)
    assert re.findall(r"sbom\.py (.+) > ", makefile) == [f"cpu {extras}"] == [" ".join(SERVING)]


def test_an_environment_that_lacks_something_has_no_bill_of_materials() -> None:
    with pytest.raises(SystemExit, match="onnxruntime-gpu is needed and not installed"):
        needed_by("clipserve", ["gpu"])
