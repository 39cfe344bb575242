"""Ready-made ONNX exports from a model hub → a folder of the registry.

What is pulled is rewrapped to the contract of ``models.manifest`` and enters only after the rewrapped pair
gave what the original files give, over generated pictures and texts, in batches of 1, 2 and 7.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from math import exp, inf
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from models.errors import PullError
from models.hub import HubRepository, Progress, check_sha256, open_repository
from models.layouts import Facts, Layout, find_layout, read_facts
from models.manifest import (
    IMAGE_GRAPH,
    MANIFEST_NAME,
    TEXT_GRAPH,
    TOKENIZER,
    ModelManifest,
    ModelName,
    Precision,
    ScoringSpec,
    file_entry,
)
from models.staging import staged

if TYPE_CHECKING:
    from models.originals import Checked

_EXTRAS = {"onnx": "export", "onnxruntime": "cpu"}
_ONE_BY_ONE = " It was exported for a batch of one: a batch is run item by item inside the graph."
_Line = tuple[float, float]  # logit scale and bias
_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
_CLIP_LIMIT = 100.0  # "clipped to prevent scaling the logits by more than 100" (Radford et al. 2021, 2.5)


@dataclass(frozen=True)
class _Download:
    """The files of one layout, fetched when asked for and compared with their pinned SHA-256."""

    repository: HubRepository
    pinned: Mapping[str, str]
    progress: Progress
    used: set[str] = field(default_factory=set)

    def __call__(self, path: str) -> Path:
        local = self.repository.download(path, self.progress)
        self.used.add(path)
        if path in self.pinned:
            check_sha256(local, path, self.pinned[path], by="the pin")
        return local

    def refuse_idle_pins(self) -> None:
        """A pin that guards nothing gives a false feeling of safety."""
        idle = sorted(set(self.pinned) - self.used)
        if idle:
            raise PullError(f"sha256: the model does not use {', '.join(idle)}")

    def graph(self, path: str, folder: Path) -> Path:
        """A graph with the files of its weights beside it.

        Such weights are copied to ``folder``: the cache keeps links, which ONNX refuses to follow.
        """
        from models.rewrap import external_files

        local = self(path)
        beside = external_files(local)
        if not beside:
            return local
        here = folder / path
        here.parent.mkdir(parents=True, exist_ok=True)
        for name in (here.name, *beside):
            source = self(str(PurePosixPath(path).with_name(name)))
            shutil.copyfile(source, here.with_name(name))
        return here


def pull(
    repo: str,
    *,
    destination: Path,
    revision: str | None = None,
    name: str | None = None,
    precision: Precision = "fp32",
    sha256: Mapping[str, str] | None = None,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch a model, rewrap it, check it against the original and move it to ``destination``.

    Args:
        repo: ``owner/name`` on the hub that ``HF_ENDPOINT`` names, or ``owner/name@revision``.
        destination: the model's folder; its parent is made where it is missing.
        revision: branch, tag or commit; None is the default branch. The manifest records the commit.
        name: the model's name; None takes that of ``destination``.
        precision: which of the repository's exports to take.
        sha256: hex digests by path in the repository; a file that differs is refused.
        logit_scale: the trained factor, for a repository that does not hold it.
        logit_bias: the same for SigLIP's bias.
        overwrite: replace what lies at ``destination``; otherwise that is an error.
        progress: called with what is going on and how far it is, 0 to 1.

    Returns:
        ``destination``.

    Raises:
        PullError: in one sentence, whatever went wrong; nothing is left behind.
        ExportError: the rewrapped graphs do not give what the original gives; the text has the figures.
    """
    _require_extras()
    given = _given_scoring(logit_scale, logit_bias)
    name = _checked_name(name or destination.name)
    repo, _, tagged = repo.partition("@")
    say = progress or (lambda _stage, _done: None)
    say("looking up", 0.0)
    repository = open_repository(repo, revision or tagged or None)
    layout = find_layout(repo, repository.files, precision)
    download = _Download(repository, _pins(sha256 or {}, repository), say)
    with (
        staged(destination, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(dir=folder.parent) as originals,
    ):
        manifest = _build(
            download,
            layout,
            name=name,
            precision=precision,
            given=given,
            folder=folder,
            originals=Path(originals),
        )
        manifest.write(folder)
    say("done", 1.0)
    return destination


def default_name(repo: str) -> str:
    """The name a pulled model gets where the user gives none: the last part of ``owner/name@revision``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", repo.partition("@")[0].rpartition("/")[2]).strip("-.") or "model"


def _checked_name(name: str) -> str:
    try:
        return _NAME.validate_python(name)
    except ValidationError as error:
        raise PullError(f"name: {name!r} must be letters, digits, dots, dashes and underscores") from error


def _given_scoring(scale: float | None, bias: float | None) -> _Line | None:
    """The caller's logit scale and bias, which only make sense together."""
    if scale is None and bias is None:
        return None
    if scale is None or not 0 < scale < inf:
        raise PullError(f"logit_scale: must be a positive number, not {scale}")
    return scale, bias or 0.0


def _build(
    download: _Download,
    layout: Layout,
    *,
    name: str,
    precision: Precision,
    given: _Line | None,
    folder: Path,
    originals: Path,
) -> ModelManifest:
    """Fill ``folder`` with a checked model; returns the manifest to write there."""
    from models.originals import Originals, check
    from models.rewrap import load_graph, opset, parameter_count, save_graph, tower, wrap_image, wrap_text

    facts = read_facts(layout, download)
    shutil.copyfile(download(layout.tokenizer), folder / TOKENIZER)
    paths = {path: download.graph(path, originals) for path in layout.graphs}
    download.refuse_idle_pins()
    download.progress("rewrapping", 0.0)
    image = load_graph(paths[layout.image])
    text = image if layout.combined else load_graph(paths[layout.text])
    original = Originals.open(
        facts, image, text, (paths[layout.image], paths[layout.text]), folder / TOKENIZER
    )
    image, text = tower(image, original.image_output), tower(text, original.text_output)
    parameters = parameter_count((image, text)) if precision != "int8" else None
    dim = original.embedding_dim()
    spec = facts.image
    wrapped = wrap_image(image, size=spec.size, mean=spec.mean, std=spec.std, embedding_dim=dim)
    save_graph(wrapped, folder / IMAGE_GRAPH)
    wrapped = wrap_text(
        text,
        mask=original.mask,
        end_token=original.text.end_token,
        pad_token=original.text.pad_token,
        embedding_dim=dim,
    )
    save_graph(wrapped, folder / TEXT_GRAPH)
    del image, text
    download.progress("comparing with the original", 0.0)
    checked = check(original, folder, reference=f"original ONNX files of {download.repository}")
    scoring, remark = _scoring(facts, checked, given)
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME}
    digests = {path: f"sha256:{file_entry(local).sha256}" for path, local in paths.items()}
    report = checked.report.model_copy(
        update={"versions": {tool: version(tool) for tool in _EXTRAS} | digests}
    )
    return ModelManifest(
        name=name,
        architecture=facts.architecture,
        pretrained=str(download.repository),
        network_activation=facts.network_activation,
        parameters=parameters,
        source=f"{download.repository} ({layout.name} layout)",
        licence=download.repository.licence,
        description=f"Rewrapped from {' and '.join(layout.graphs)}. {remark}"
        + (_ONE_BY_ONE if original.one_by_one else ""),
        embedding_dim=dim,
        image=spec,
        text=checked.text,
        scoring=scoring,
        precision=precision,
        opset=opset(wrapped),
        files=files,
        parity=report,
    )


def _scoring(facts: Facts, checked: Checked, given: _Line | None) -> tuple[ScoringSpec, str]:
    """The trained scale and bias from the surest source there is, and what to say where one is assumed."""
    if given is not None:
        return _spec(facts, *given), "Logit scale and bias as given to pull."
    if checked.scoring is not None:
        return _spec(facts, *checked.scoring), "Logit scale and bias measured on the original's own scores."
    if facts.activation == "sigmoid":
        raise PullError(
            "the repository holds SigLIP's trained logit scale and bias in no graph, and scores mean nothing"
            " without them: give logit_scale and logit_bias"
        )
    if facts.log_scale is not None:
        return _spec(facts, exp(facts.log_scale), 0.0), "Logit scale from config.json."
    remark = (
        f"The repository does not say its trained logit scale; CLIP's limit of {_CLIP_LIMIT:g} is assumed."
    )
    return _spec(facts, _CLIP_LIMIT, 0.0), remark


def _spec(facts: Facts, scale: float, bias: float) -> ScoringSpec:
    return ScoringSpec(logit_scale=scale, logit_bias=bias, activation=facts.activation)


def _pins(pinned: Mapping[str, str], repository: HubRepository) -> Mapping[str, str]:
    for path, digest in pinned.items():
        if path not in repository.files:
            raise PullError(f"sha256: {repository} has no file {path}")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise PullError(f"sha256: the digest of {path} must be 64 hexadecimal digits, not {digest!r}")
    return pinned


def _require_extras() -> None:
    for package, extra in _EXTRAS.items():
        try:
            import_module(package)
        except ImportError as error:
            raise PullError(
                f"pull needs the package {package}, which is not installed: pip install 'clipserve[{extra}]'"
            ) from error
