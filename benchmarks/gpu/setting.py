"""What is measured on a GPU, and how a machine without one tries that it runs at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.layout import Layout
from models.export import export_open_clip
from models.manifest import Precision
from models.runtimes import Provider, RuntimeOptions

SEED = 0
_TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """``seconds`` is one measurement's, ``minutes`` is when nothing new is begun any more."""

    architectures: tuple[str, ...]
    provider: Provider
    device: Literal["cpu", "cuda"]
    batches: tuple[int, ...]
    seconds: float
    minutes: float
    clients: tuple[int, ...]
    layouts: tuple[Layout, ...]
    soak_seconds: float

    @property
    def max_batch(self) -> int:
        """The largest bucket."""
        return max(self.batches)

    def options(self, provider: Provider, precision: Precision, cache: Path) -> RuntimeOptions:
        """How clipserve runs a model of ``precision`` here, on a CPU through the same buckets."""
        return RuntimeOptions(
            runtime="onnxruntime",
            provider=provider,
            buckets="on",
            max_batch=self.max_batch,
            weights=precision,
            cache_dir=cache,
        )


# The batches in the order of their weight: what comes last is left out first where time runs out.
FULL = Setting(
    architectures=("ViT-B-32", "ViT-L-14"),
    provider="cuda",
    device="cuda",
    batches=(32, 256, 1, 128, 8),
    seconds=1.0,
    minutes=7.0,
    clients=(1, 64, 256),
    layouts=(Layout(1), Layout(4), Layout(8), Layout(8, shared_engine=True)),
    soak_seconds=60.0,
)
TINY = Setting(
    architectures=("tiny",),
    provider="cpu",
    device="cpu",
    batches=(4, 1),
    seconds=0.1,
    minutes=3.0,
    clients=(1, 8),
    layouts=(Layout(1), Layout(2), Layout(2, shared_engine=True)),
    soak_seconds=2.0,
)


def know_tiny() -> None:
    """Let open_clip know the architecture ``tiny``; each process has to be told."""
    import open_clip

    open_clip.factory._MODEL_CONFIGS["tiny"] = _TINY


def name_of(architecture: str, precision: Precision) -> str:
    """The model's folder."""
    return f"{architecture}-{precision}"


def export(folder: Path, architecture: str, precisions: Sequence[Precision]) -> None:
    """Export with seeded weights, each checked against open_clip; what is there already stays."""
    know_tiny()
    for precision in precisions:
        place = folder / name_of(architecture, precision)
        if not place.exists():
            export_open_clip(architecture, destination=place, precision=precision, seed=SEED)
