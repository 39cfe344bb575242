"""From the labels and templates of a request to checked labels and a template set."""

from __future__ import annotations

from collections.abc import Sequence

from prompts.labels import Label, check_labels
from prompts.templates import PLACEHOLDER, TemplateSet, TemplateSets, custom_template_set
from service.class_builder import count_prompts
from service.errors import TooLargeError
from service.inputs import ClassRequest
from service.settings import Settings

_MAX_PROMPTS_A_LABEL = 1000


def choose_templates(wanted: ClassRequest, template_sets: TemplateSets, settings: Settings) -> TemplateSet:
    """The templates of the request, the set it names, or the server's default.

    Raises:
        UnknownTemplateSetError: no set of that name.
        TemplateError: a template breaks a rule; the text names it.
    """
    if wanted.templates is not None:
        return custom_template_set(wanted.templates, max_length=settings.max_text_length)
    return template_sets.get(wanted.template_set or settings.default_template_set)


def check_classes(
    wanted: ClassRequest, template_set: TemplateSet, settings: Settings, *, max_labels: int, max_prompts: int
) -> tuple[Label, ...]:
    """The labels of the request, held to every rule and limit.

    Raises:
        LabelError: a label breaks a rule; the text names it.
        TooLargeError: together they need too many prompts, or prompts that are too long.
    """
    labels = wanted.labels or ()
    check_labels(
        labels, max_labels=max_labels, max_prompts=_MAX_PROMPTS_A_LABEL, max_length=settings.max_text_length
    )
    _check_prompt_length(labels, template_set, settings.max_text_length)
    prompts = count_prompts(labels, template_set)
    if prompts > max_prompts:
        raise TooLargeError(
            f"labels: {len(labels)} labels with template set {template_set.name!r} make {prompts} prompts,"
            f" at most {max_prompts} are allowed"
        )
    return labels


def _check_prompt_length(labels: Sequence[Label], template_set: TemplateSet, limit: int) -> None:
    """A label that a template repeats would make prompts of megabytes out of a request of kilobytes."""
    times = max(template.count(PLACEHOLDER) for template in template_set.templates)
    if times == 1:
        return
    longest = max((len(label.name) for label in labels if label.prompts is None), default=0)
    if times * longest > limit:
        raise TooLargeError(
            f"templates: one has the label {times} times, and the longest label has {longest} characters;"
            f" in one prompt labels may have {limit} characters"
        )


def check_named_classes(
    wanted: ClassRequest, template_set: TemplateSet, settings: Settings
) -> tuple[Label, ...]:
    """The labels of a named classifier; raises as ``check_classes`` does."""
    return check_classes(
        wanted,
        template_set,
        settings,
        max_labels=settings.max_classifier_labels,
        max_prompts=settings.max_classifier_labels * 100,
    )
