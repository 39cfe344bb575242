"""Exports architectures at full size, with seeded random weights, and keeps a table of how that went.

``python tests/parity/zoo.py ARCHITECTURE`` exports one into a temporary folder and prints its row as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_THREADS = 2
DOCS = Path(__file__).parents[2] / "docs"
ARCHITECTURES = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"),
    *("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "MobileCLIP2-S0", "MobileCLIP-S1", "EVA02-B-16"),
    *("convnext_base_w", "ViTamin-S", "PE-Core-T-16-384", "roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32"),
    *("coca_ViT-B-32", "ViT-H-14"),
)
_HEAD = """# The zoo: what the export was proven on

Every row is one `clipserve export` with seeded random weights, compared with open_clip on the check set
(36 generated pictures; 28 texts, cut and padded where the length is dynamic; batches of 1, 2 and 7).
Pretrained weights change the numbers in the last digits, not the graphs. `1 - cosine` and `difference`
are the largest of any item; `alike` is the mean cosine between *different* pictures under open_clip
itself: the nearer to 1, the less a picture row proves. `export` is the wall time of the whole command on
two threads of a machine that did other work too. Made by `make test-zoo`.

"""
_COLUMNS = (
    *("architecture", "parameters", "export", "image.onnx", "text.onnx", "dynamic length"),
    *("image: 1 - cosine", "difference", "alike", "text: 1 - cosine", "difference", "top-1", "peak memory"),
)


def stand_in_for_the_hub(architecture: str, folder: Path) -> None:
    """Point what open_clip would fetch from the hub at configurations and tokenizers made here."""
    import open_clip
    import stand_ins

    text: dict[str, Any] = open_clip.factory._MODEL_CONFIGS[architecture]["text_cfg"]
    makers = {
        "roberta-base": stand_ins.roberta,
        "xlm-roberta-base": stand_ins.xlm_roberta,
        "timm/ViT-B-16-SigLIP": stand_ins.siglip_tokenizer,
        "timm/ViT-B-16-SigLIP2": stand_ins.siglip_tokenizer,
    }
    original = text.get("hf_tokenizer_name")
    if original:
        text["hf_tokenizer_name"] = str(makers[original](folder))
    if "hf_model_name" in text:
        text["hf_model_name"] = str(folder)


def measure(architecture: str) -> dict[str, Any]:
    """Export ``architecture`` and say how it went; the model folder is gone afterwards."""
    from models.errors import ExportError
    from models.export import export_open_clip
    from models.manifest import ModelManifest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_in_for_the_hub(architecture, folder / "hub")
        started = time.perf_counter()
        try:
            export_open_clip(architecture, destination=folder / "model", threads=_THREADS)
        except ExportError as error:
            return {"architecture": architecture, "reason": str(error)}
        return {
            "architecture": architecture,
            "seconds": round(time.perf_counter() - started, 1),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "manifest": ModelManifest.read(folder / "model").model_dump(
                include={"parameters", "files", "text", "parity", "opset", "network_activation"}, mode="json"
            ),
        }


def keep(row: dict[str, Any]) -> None:
    """Put ``row`` in its place in ``docs/zoo.json`` and write ``docs/zoo.md`` anew."""
    path = DOCS / "zoo.json"
    rows = {each["architecture"]: each for each in json.loads(path.read_text())} if path.exists() else {}
    rows[row["architecture"]] = row
    ordered = [rows[architecture] for architecture in ARCHITECTURES if architecture in rows]
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    (DOCS / "zoo.md").write_text(_HEAD + _table(ordered) + _missing(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(row) for row in rows)]
    versions = next((row["manifest"]["parity"]["versions"] for row in rows if "manifest" in row), {})
    conditions = ", ".join(f"{package} {number}" for package, number in versions.items())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nWith {conditions}, on a CPU.\n"


def _missing(rows: dict[str, Any]) -> str:
    missing = [architecture for architecture in ARCHITECTURES if architecture not in rows]
    return f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return (row["architecture"], f"refused: {row['reason']}", *[""] * (len(_COLUMNS) - 2))
    manifest = row["manifest"]
    parity, files = manifest["parity"], manifest["files"]
    image, text = parity["image"], parity["text"]
    return (
        row["architecture"],
        f"{manifest['parameters'] / 1e6:.0f} M",
        f"{row['seconds']:.0f} s",
        _size(files, "image.onnx"),
        _size(files, "text.onnx"),
        "yes" if manifest["text"]["dynamic_length"] else "no",
        f"{max(0, 1 - image['min_cosine']):.0e}",
        f"{image['max_difference']:.1e}",
        f"{image['reference_similarity']:.4f}",
        f"{max(0, 1 - text['min_cosine']):.0e}",
        f"{text['max_difference']:.1e}",
        f"{parity['top1_agreement']:.0%}",
        f"{row['peak_memory'] / 1e9:.1f} GB",
    )


def _size(files: dict[str, Any], graph: str) -> str:
    """With the weights that lie beside it."""
    beside = files.get(f"{graph}.data")
    total = files[graph]["size"] + (beside["size"] if beside else 0)
    return f"{total / 1e6:.0f} MB{' (external)' if beside else ''}"


if __name__ == "__main__":
    json.dump(measure(sys.argv[1]), sys.stdout)
