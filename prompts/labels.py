"""A class as the user names it: a label, with or without prompts of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prompts.errors import LabelError, TooManyLabelsError
from prompts.templates import TemplateSet


class Label(NamedTuple):
    """The name of a class. ``prompts``, where given, are used as they are, instead of templates.

    A tuple, since requests bring thousands and a dataclass takes three times as long to make.
    """

    name: str
    prompts: tuple[str, ...] | None = None


def prompts_for(label: Label, template_set: TemplateSet) -> tuple[str, ...]:
    """The texts to encode for one label: its own prompts, or the templates filled with its name."""
    return template_set.fill(label.name) if label.prompts is None else label.prompts


def check_labels(
    labels: Sequence[Label], *, max_labels: int = 1000, max_prompts: int = 128, max_length: int = 512
) -> None:
    """Hold a list of labels to its rules: some, distinct, none blank, none over a limit.

    ``max_prompts`` counts one label's own prompts; ``max_length`` counts the characters of a name or
    of a prompt.

    Raises:
        TooManyLabelsError: there are more labels, or prompts for a label, than allowed.
        LabelError: any other rule is broken. Both texts name the position and the limit.
    """
    if not labels:
        raise LabelError("labels: at least one is needed")
    if len(labels) > max_labels:
        raise TooManyLabelsError(f"labels: {len(labels)} are given, at most {max_labels} are allowed")
    if _plainly_fine([label.name for label in labels], max_length) and all(
        label.prompts is None for label in labels
    ):
        return
    first_seen: dict[str, int] = {}
    for position, label in enumerate(labels):
        field = f"labels[{position}]"
        _check_text(label.name, field, max_length)
        earlier = first_seen.setdefault(label.name, position)
        if earlier != position:
            raise LabelError(f"{field}: {label.name!r} is the same as labels[{earlier}]")
        if label.prompts is not None:
            _check_prompts(label.prompts, f"{field}.prompts", max_prompts, max_length)


def _plainly_fine(names: list[str], max_length: int) -> bool:
    """What nearly every list is, found out at once; where it is not, names are looked at one by one."""
    joined = "".join(names)
    return (
        joined.isascii()
        and max(map(len, names)) <= max_length
        and len(set(names)) == len(names)
        and all(map(str.strip, names))
    )


def _check_prompts(prompts: tuple[str, ...], field: str, max_prompts: int, max_length: int) -> None:
    if not prompts:
        raise LabelError(f"{field}: at least one is needed; leave the field out to use templates")
    if len(prompts) > max_prompts:
        raise TooManyLabelsError(f"{field}: {len(prompts)} are given, at most {max_prompts} are allowed")
    for position, prompt in enumerate(prompts):
        _check_text(prompt, f"{field}[{position}]", max_length)


def _check_text(text: str, field: str, max_length: int) -> None:
    if not text or text.isspace():
        raise LabelError(f"{field}: is blank")
    if len(text) > max_length:
        raise LabelError(f"{field}: has {len(text)} characters, at most {max_length} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can carry and UTF-8 cannot
        raise LabelError(f"{field}: is not valid Unicode ({error.reason})") from error
