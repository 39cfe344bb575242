"""The models people use, by a short name, and which command brings each into the registry.

A list for orientation: any other open_clip architecture and tag can be exported, and any repository in a
known layout pulled, just as well. The list itself is data, in ``catalogue.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_DATA = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One model.

    ``pretrained`` is open_clip's tag for an ``export`` and a repository on the hub for a ``pull``.
    ``parameters`` counts both towers as open_clip builds them; ``image_size`` is the side in pixels.
    ``imagenet_top1`` is the zero-shot accuracy in percent that ``source`` states: published, not measured
    here, and None where no figure could be traced to a source. An empty ``licence`` means: look it up.
    """

    name: str
    route: Literal["export", "pull"]
    architecture: str
    pretrained: str
    parameters: int
    embedding_dim: int
    image_size: int
    licence: str
    imagenet_top1: float | None
    source: str

    @property
    def command(self) -> str:
        """What to type to get it."""
        if self.route == "pull":
            return f"clipserve pull {self.pretrained} --name {self.name}"
        return f"clipserve export {self.architecture} --pretrained {self.pretrained} --name {self.name}"


@cache
def available() -> tuple[CatalogueEntry, ...]:
    """Every entry, grouped by family and in the order of size."""
    return tuple(CatalogueEntry(**entry) for entry in json.loads(_DATA.read_text(encoding="utf-8")))
