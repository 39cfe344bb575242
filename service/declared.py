"""Classifiers declared in files: one JSON file a classifier, of the shape of ``PUT /classifiers/{name}``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prompts.errors import PromptError
from service.body import parse_json
from service.classes import check_named_classes, choose_templates
from service.context import Services
from service.errors import RequestError
from service.inputs import ClassifierRequest, classifier_request
from service.schemas import ClassifierBody


class DeclarationError(Exception):
    """A file of a declared classifier is wrong; the text names the file and the field."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One file: the classifier's name, without ``.json``, and what the classifier is made of."""

    name: str
    path: Path
    wanted: ClassifierRequest


def read_declared(folder: Path) -> list[Declared]:
    """Every ``*.json`` of a folder, sorted by name.

    Raises:
        DeclarationError: the folder or a file cannot be read, or a file is not of that shape.
    """
    if not folder.is_dir():
        raise DeclarationError(f"CLIPSERVE_DECLARED_CLASSIFIERS_DIR: {folder} is no directory")
    return [_read(path) for path in sorted(folder.glob("*.json"))]


async def build_declared(services: Services, declared: list[Declared]) -> None:
    """Make sure that all of them can be served. One that the store has already costs nothing.

    Raises:
        DeclarationError: one of them cannot be built.
    """
    settings = services.settings
    for one in declared:
        classes = one.wanted.classes
        try:
            served = services.engine.model(one.wanted.model or settings.models[0])
            template_set = choose_templates(classes, services.template_sets, settings)
            labels = check_named_classes(classes, template_set, settings)
            await services.classifiers.declare(one.name, labels, template_set, model=served.name)
        except Exception as error:
            raise DeclarationError(f"{one.path}: {error}") from error


def _read(path: Path) -> Declared:
    try:
        wanted = classifier_request(parse_json(path.read_bytes(), ClassifierBody))
    except (OSError, RequestError, PromptError) as error:
        raise DeclarationError(f"{path}: {error}") from error
    return Declared(name=path.stem, path=path, wanted=wanted)
