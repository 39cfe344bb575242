"""A named classifier as it is kept: what it is made of, and its bytes.

The format is one line of JSON, the matrix as ``.npy`` (nothing, while there is none), and the SHA-256 of
both. It asks nothing of the place where it is kept: a file, a key of a database.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompts.errors import ClassifierNameError, EmbeddingError, PromptError, StoreError
from prompts.labels import Label
from prompts.templates import TemplateSet

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHECKSUM_BYTES = hashlib.sha256().digest_size


def check_classifier_name(name: str) -> None:
    """Refuse any name that is not plain.

    Raises:
        ClassifierNameError: it is not 1 to 64 letters, digits, ``.``, ``_``, ``-``, a letter or digit first.
    """
    if not _NAME.fullmatch(name):
        raise ClassifierNameError(
            f"name: {name[:80]!r} is not 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredClassifier:
    """All it takes to serve a classifier again, and to see whether the model is still the same.

    ``matrix``, float32, holds the class embeddings of the first ``done`` labels: (C, D) once the
    classifier is complete, fewer rows while it is being built, None before. ``created`` is an ISO 8601
    time. ``ticket`` orders the writes of one name, whichever process they come from: a store refuses one
    that is older than what it has.

    Raises:
        ClassifierNameError: the name is not plain.
        EmbeddingError: the matrix is not float32 of two axes, or has more rows than there are labels.
    """

    name: str
    labels: tuple[Label, ...]
    template_set: TemplateSet
    model: str
    model_digest: str
    created: str
    matrix: NDArray[np.float32] | None = None
    ticket: int = 0

    def __post_init__(self) -> None:
        check_classifier_name(self.name)
        if self.matrix is None:
            return
        if self.matrix.ndim != 2 or self.matrix.dtype != np.float32:
            raise EmbeddingError(
                f"matrix: must be float32 (C, D), not {self.matrix.dtype} {self.matrix.shape}"
            )
        if self.done > len(self.labels):
            raise EmbeddingError(f"matrix: {self.done} rows for {len(self.labels)} labels")

    @property
    def done(self) -> int:
        """How many labels have their embedding."""
        return 0 if self.matrix is None else len(self.matrix)

    @property
    def complete(self) -> bool:
        """Whether every label has its embedding."""
        return self.done == len(self.labels)

    @property
    def content(self) -> tuple[object, ...]:
        """What it is made of: equal for two that say the same of themselves and have the same matrix."""
        templates = self.template_set
        return self.model, self.model_digest, templates.name, templates.digest, self.labels


class _StoredLabel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: str
    prompts: tuple[str, ...] | None = None


class _StoredTemplates(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    templates: tuple[str, ...]
    description: str = ""
    source: str = ""


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["clipserve-classifier"] = "clipserve-classifier"
    version: Literal[1] = 1
    name: str
    model: str
    model_digest: str
    created: str
    ticket: int = 0
    template_set: _StoredTemplates
    labels: Annotated[tuple[_StoredLabel, ...], Field(min_length=1)]


def to_bytes(classifier: StoredClassifier) -> bytes:
    """Write a classifier, complete or not, as bytes that ``from_bytes`` reads."""
    templates = classifier.template_set
    header = _Header(
        name=classifier.name,
        model=classifier.model,
        model_digest=classifier.model_digest,
        created=classifier.created,
        ticket=classifier.ticket,
        template_set=_StoredTemplates(
            name=templates.name,
            templates=templates.templates,
            description=templates.description,
            source=templates.source,
        ),
        labels=tuple(_StoredLabel(label=label.name, prompts=label.prompts) for label in classifier.labels),
    )
    content = header.model_dump_json().encode() + b"\n" + _matrix_bytes(classifier.matrix)
    return content + hashlib.sha256(content).digest()


def from_bytes(data: bytes) -> StoredClassifier:
    """Read what ``to_bytes`` wrote; the matrix is read-only.

    Raises:
        StoreError: the bytes are cut short or changed, or are of a format or version that is unknown.
    """
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        raise StoreError("it is cut short or changed: the checksum does not match")
    line, _, matrix = content.partition(b"\n")
    try:
        header = _Header.model_validate_json(line)
        return StoredClassifier(
            name=header.name,
            labels=tuple(Label(entry.label, entry.prompts) for entry in header.labels),
            template_set=TemplateSet(**header.template_set.model_dump()),
            model=header.model,
            model_digest=header.model_digest,
            created=header.created,
            ticket=header.ticket,
            matrix=_read_matrix(matrix),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the first line"
        raise StoreError(f"{field}: {first['msg']}") from error
    except (ValueError, PromptError) as error:
        raise StoreError(str(error)) from error


def _matrix_bytes(matrix: NDArray[np.float32] | None) -> bytes:
    if matrix is None:
        return b""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, matrix, allow_pickle=False)
    return stream.getvalue()


def _read_matrix(data: bytes) -> NDArray[np.float32] | None:
    if not data:
        return None
    matrix: NDArray[np.float32] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    matrix.flags.writeable = False
    return matrix
