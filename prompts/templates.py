"""Template sets: the sentences a label is put into before the text encoder reads it.

A set is a JSON file, ``<name>.json``, of three fields: ``description``, ``source`` and ``templates``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prompts.errors import TemplateError, UnknownTemplateSetError

PLACEHOLDER = "{label}"
BUILT_IN = Path(__file__).parent / "template_sets"


@dataclass(frozen=True, kw_only=True)
class TemplateSet:
    """A named prompt ensemble: one or more distinct templates, each with ``{label}`` in it.

    Only ``{label}`` is replaced; any other brace is literal text.

    Raises:
        TemplateError: there is no template, or one is blank, lacks the placeholder or occurs twice.
    """

    name: str
    templates: tuple[str, ...]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.templates:
            raise TemplateError("templates: at least one is needed")
        first_seen: dict[str, int] = {}
        for position, template in enumerate(self.templates):
            _check_template(template, position)
            earlier = first_seen.setdefault(template, position)
            if earlier != position:
                raise TemplateError(f"templates[{position}]: the same as templates[{earlier}]")

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the templates in their order; name and description do not count."""
        return hashlib.sha256(json.dumps(self.templates).encode()).hexdigest()

    def fill(self, label: str) -> tuple[str, ...]:
        """One prompt a template, in the order of the templates."""
        return tuple(template.replace(PLACEHOLDER, label) for template in self.templates)


def _check_template(template: str, position: int) -> None:
    if PLACEHOLDER not in template:
        hint = ", not {}" if "{}" in template else ""
        raise TemplateError(f"templates[{position}]: must contain {PLACEHOLDER}{hint}")
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise TemplateError(f"templates[{position}]: is not valid Unicode ({error.reason})") from error


def custom_template_set(
    templates: Sequence[str], *, name: str = "custom", max_templates: int = 128, max_length: int = 512
) -> TemplateSet:
    """Make a set of templates that came from outside, within limits (lengths in characters).

    Raises:
        TemplateError: a limit or a rule of ``TemplateSet`` is broken; the text names the template.
    """
    if len(templates) > max_templates:
        raise TemplateError(f"templates: {len(templates)} are given, at most {max_templates} are allowed")
    for position, template in enumerate(templates):
        if len(template) > max_length:
            raise TemplateError(
                f"templates[{position}]: has {len(template)} characters, at most {max_length} are allowed"
            )
    return TemplateSet(name=name, templates=tuple(templates))


class TemplateSets:
    """The sets that come with the package, and those of further folders, by name.

    Iterating gives the sets in the order of their names.

    Raises:
        TemplateError: a folder or file cannot be used, or a name is taken; the text names the file.
    """

    def __init__(self, *folders: Path) -> None:
        self._sets: dict[str, TemplateSet] = {}
        for folder in (BUILT_IN, *folders):
            if not folder.is_dir():
                raise TemplateError(f"template folder {folder}: no such folder")
            for path in sorted(folder.glob("*.json")):
                if path.stem in self._sets:
                    raise TemplateError(f"{path}: a template set named {path.stem!r} exists already")
                self._sets[path.stem] = read_template_set(path)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._sets))

    def get(self, name: str) -> TemplateSet:
        """The set of that name.

        Raises:
            UnknownTemplateSetError: there is none; the text lists those there are.
        """
        try:
            return self._sets[name]
        except KeyError:
            known = ", ".join(self.names())
            raise UnknownTemplateSetError(
                f"template_set: none is named {name[:80]!r}; known: {known}"
            ) from None

    def __iter__(self) -> Iterator[TemplateSet]:
        return (self._sets[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._sets)


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    description: str = ""
    source: str = ""
    templates: tuple[str, ...]


def read_template_set(path: Path) -> TemplateSet:
    """Read one set; it is named after its file.

    Raises:
        TemplateError: the file cannot be read or breaks a rule; the text names file and field.
    """
    try:
        content = _TemplateFile.model_validate_json(path.read_bytes())
        return TemplateSet(name=path.stem, **content.model_dump())
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TemplateError(f"{path}: {field}: {first['msg']}") from error
    except TemplateError as error:
        raise TemplateError(f"{path}: {error}") from error
