"""The model under measurement and the ways clipserve can run it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from models.export import export_open_clip
from models.runtimes import RuntimeName, RuntimeOptions, RuntimePrecision

MODEL = "ViT-B-32"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A runtime and a precision."""

    runtime: RuntimeName
    precision: RuntimePrecision

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.runtime} {self.precision}"

    @property
    def bare(self) -> str:
        """The runtime by itself, nothing set but the precision."""
        return f"bare {self.name}"

    @property
    def options(self) -> RuntimeOptions:
        """For sessions in process."""
        return RuntimeOptions(runtime=self.runtime, precision=self.precision, provider="cpu")

    @property
    def environment(self) -> dict[str, str]:
        """For a server."""
        return {
            "CLIPSERVE_RUNTIME": self.runtime,
            "CLIPSERVE_RUNTIME_PRECISION": self.precision,
            "CLIPSERVE_PROVIDER": "cpu",
        }


def configurations(*, all_of_them: bool = True) -> list[Configuration]:
    """Every runtime and precision that runs here, the slowest first; or only the two ends of that list."""
    found = [Configuration(runtime="onnxruntime", precision="fp32")]
    if importlib.util.find_spec("openvino") is not None:
        from models.runtimes.openvino import computes_bf16

        found.append(Configuration(runtime="openvino", precision="fp32"))
        if computes_bf16():
            found.append(Configuration(runtime="openvino", precision="bf16"))
    return found if all_of_them else list(dict.fromkeys((found[0], found[-1])))


def prepare_model(var: Path) -> Path:
    """The folder of models with ``MODEL`` in it; exported with seeded random weights the first time."""
    folder = var / "bench-models"
    if not (folder / MODEL).exists():
        folder.mkdir(parents=True, exist_ok=True)
        export_open_clip(MODEL, destination=folder / MODEL, seed=SEED, threads=len(os.sched_getaffinity(0)))
    return folder
