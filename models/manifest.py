"""The only description of a model: ``model.json`` beside its ONNX files.

Serving reads nothing else, so two models differ in their manifests and never in code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.errors import ManifestError

MANIFEST_NAME = "model.json"
IMAGE_GRAPH = "image.onnx"
TEXT_GRAPH = "text.onnx"
TOKENIZER = "tokenizer.json"
REQUIRED_FILES = (IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER)

Precision = Literal["fp32", "fp16", "int8"]
Activation = Literal["softmax", "sigmoid"]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSpec(_Frozen):
    """How picture bytes become ``pixels``, uint8 (size, size, 3), RGB.

    ``mean`` and ``std`` (of the 0..1 range) are applied inside the graph and recorded for reference.
    """

    size: Annotated[int, Field(ge=1, le=4096)]
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TextSpec(_Frozen):
    """How a string becomes ``tokens``, int64 (context_length,), or shorter where ``dynamic_length``.

    ``cleaning`` runs before ``tokenizer.json``; the names are open_clip's. ``end_token`` is None for
    tokenizers that add none. ``dynamic_length`` is true only when the export proved that a sequence
    cut to its real length has the same features as the padded one.
    """

    context_length: Annotated[int, Field(ge=2, le=8192)]
    cleaning: Literal["none", "whitespace", "lower", "canonicalize"] = "lower"
    pad_token: int = 0
    end_token: int | None = None
    dynamic_length: bool = False


class ScoringSpec(_Frozen):
    """``activation(logit_scale · cosine + logit_bias)``; ``logit_scale`` is the factor, not its logarithm."""

    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    logit_bias: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    activation: Activation = "softmax"


class FileEntry(_Frozen):
    """One file of the model: its SHA-256 (hex) and its length in bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class TowerParity(_Frozen):
    """How far one exported tower is from the reference over the check set.

    ``reference_similarity`` is the mean cosine between different items under the reference itself: the
    nearer it is to 1, the less a high ``min_cosine`` says.
    """

    items: int
    min_cosine: float
    max_difference: float
    reference_similarity: float | None = None


class ParityReport(_Frozen):
    """What was compared at export, against what, and how far apart the two were."""

    reference: str
    batches: tuple[int, ...]
    text_lengths: tuple[int, ...] = ()
    image: TowerParity
    text: TowerParity
    top1_agreement: Annotated[float, Field(ge=0, le=1)]
    versions: dict[str, str] = {}


class ModelManifest(_Frozen):
    """``model.json``, version 1."""

    schema_version: Literal[1] = 1
    name: ModelName
    architecture: str
    pretrained: str | None = None
    network_activation: Literal["gelu", "quickgelu"] | str = "gelu"
    parameters: int | None = None
    source: str = ""
    licence: str = ""
    description: str = ""
    embedding_dim: Annotated[int, Field(ge=1)]
    image: ImageSpec
    text: TextSpec
    scoring: ScoringSpec
    precision: Precision = "fp32"
    opset: int
    files: dict[str, FileEntry]
    parity: ParityReport | None = None

    @field_validator("files")
    @classmethod
    def _files_lie_in_the_folder(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        missing = [name for name in REQUIRED_FILES if name not in files]
        if missing:
            raise ValueError(f"must list {', '.join(missing)}")
        astray = [name for name in files if Path(name).name != name or name in {"", ".", ".."}]
        if astray:
            raise ValueError(f"must be plain file names, not {astray[0]!r}")
        return files

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what decides a feature's value; caches of embeddings are keyed on it."""
        facts = self.model_dump_json(include={"files", "image", "text", "precision"})
        return hashlib.sha256(facts.encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> ModelManifest:
        """Read ``folder/model.json``.

        Raises:
            ManifestError: it is missing, not JSON, or breaks a rule of the schema; the text names the field.
        """
        path = folder / MANIFEST_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ManifestError(f"{folder.name}: cannot read {MANIFEST_NAME} ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ManifestError(f"{folder.name}: {MANIFEST_NAME}: {field}: {first['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write ``folder/model.json``, indented, with a final newline."""
        (folder / MANIFEST_NAME).write_text(self.model_dump_json(indent=2) + "\n")

    def verify_files(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Compare every listed file, or those of ``names``, with its recorded length and SHA-256.

        Raises:
            ManifestError: a file is missing or differs; the text names it.
        """
        with ThreadPoolExecutor() as threads:  # hashing frees the GIL
            list(threads.map(partial(self._verify_file, folder), names or self.files))

    def _verify_file(self, folder: Path, name: str) -> None:
        entry = self.files[name]
        try:
            found = file_entry(folder / name)
        except OSError as error:
            raise ManifestError(f"{self.name}: {name} is missing ({error.strerror})") from error
        if found != entry:
            raise ManifestError(
                f"{self.name}: {name} does not match its SHA-256 in {MANIFEST_NAME}"
                f" (recorded {entry.sha256[:12]}…, found {found.sha256[:12]}…); it is not served"
            )


def file_entry(path: Path) -> FileEntry:
    """Length and SHA-256 of a file, read in pieces so that weights of many GB do not fill memory."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return FileEntry(sha256=digest.hexdigest(), size=path.stat().st_size)
