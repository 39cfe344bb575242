"""Template sets: the published ones are the published ones, and a bad one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.errors import TemplateError, UnknownTemplateSetError
from prompts.templates import TemplateSet, TemplateSets, custom_template_set

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "prompts"


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_built_in_sets_have_their_published_sizes():
    sizes = {template_set.name: len(template_set.templates) for template_set in TemplateSets()}
    assert sizes["photo"] == 1
    assert sizes["openai-simple"] == 7
    assert sizes["openai-imagenet"] == 80
    assert "shapes" in sizes


def test_openai_imagenet_is_as_published():
    path = GOLDENS / "imagenet_templates.json"
    if not path.exists():
        pytest.skip("the reference templates are not here")
    published = tuple(template.replace("{}", "{label}") for template in json.loads(path.read_text()))
    assert TemplateSets().get("openai-imagenet").templates == published


def test_openai_simple_is_as_in_open_clip():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    expected = tuple(template("cat") for template in metadata.SIMPLE_IMAGENET_TEMPLATES)
    assert TemplateSets().get("openai-simple").fill("cat") == expected


def test_fill_replaces_the_placeholder_and_no_other_brace():
    templates = TemplateSet(name="odd", templates=("{a} {label} {}", "{label}, no: a {label}"))
    assert templates.fill("cat") == ("{a} cat {}", "cat, no: a cat")


@given(st.text())
def test_fill_takes_a_label_literally(label: str):
    assert TemplateSet(name="t", templates=("<{label}>",)).fill(label) == (f"<{label}>",)


def test_digest_is_of_the_templates_alone():
    one = TemplateSet(name="one", templates=("a {label}", "b {label}"), description="x", source="y")
    same = TemplateSet(name="two", templates=("a {label}", "b {label}"))
    assert one.digest == same.digest
    assert len(one.digest) == 64
    others = [("b {label}", "a {label}"), ("a {label}",), ('a {label}", "b {label}',)]
    assert one.digest not in {TemplateSet(name="one", templates=other).digest for other in others}


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "templates: at least one"),
        (["a {label}", "no place"], r"templates\[1\]: must contain {label}"),
        (["a {}"], r"templates\[0\]: must contain {label}, not {}"),
        (["a {Label}"], r"templates\[0\]: must contain"),
        (["a {label}", "b {label}", "a {label}"], r"templates\[2\]: the same as templates\[0\]"),
        (["{label}" + "x" * 14], r"templates\[0\]: has 21 characters, at most 20"),
        ([f"{i} {{label}}" for i in range(4)], "4 are given, at most 3"),
        (["\ud800 {label}"], r"templates\[0\]: is not valid Unicode"),
    ],
)
def test_a_custom_set_is_checked(templates: list[str], message: str):
    with pytest.raises(TemplateError, match=message):
        custom_template_set(templates, max_templates=3, max_length=20)


def test_a_custom_set_may_reach_its_limits():
    made = custom_template_set(["{label}" + "x" * 13, "b {label}"], max_templates=2, max_length=20)
    assert made.name == "custom"
    assert made.fill("b")[1] == "b b"


def test_an_unknown_set_is_answered_with_the_known_ones():
    with pytest.raises(UnknownTemplateSetError, match=r"'pohto'.*photo"):
        TemplateSets().get("pohto")


def test_further_folders_add_sets(tmp_path: Path):
    write(tmp_path, "birds", {"templates": ["a {label}, a type of bird"], "source": "mine"})
    sets = TemplateSets(tmp_path)
    assert sets.get("birds").fill("wren") == ("a wren, a type of bird",)
    assert "birds" in sets.names()
    assert list(sets.names()) == [template_set.name for template_set in sets]
    assert len(sets) == len(TemplateSets()) + 1


def test_further_folders_override_nothing(tmp_path: Path):
    write(tmp_path, "photo", {"templates": ["mine: {label}"]})
    with pytest.raises(TemplateError, match=r"photo\.json: .*exists already"):
        TemplateSets(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"templates": ["no place"]}, r"bad\.json: templates\[0\]: must contain"),
        ({"templates": ["a {label}", 3]}, r"bad\.json: templates\.1: "),
        ({"description": "no templates"}, r"bad\.json: templates: "),
        ({"templates": ["a {label}"], "template": []}, r"bad\.json: template: "),
        (["a {label}"], r"bad\.json: the file: "),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: object, message: str):
    write(tmp_path, "bad", content)
    with pytest.raises(TemplateError, match=message):
        TemplateSets(tmp_path)


def test_a_file_that_is_no_json_is_named(tmp_path: Path):
    (tmp_path / "broken.json").write_text('{"templates": [')
    with pytest.raises(TemplateError, match=r"broken\.json: the file"):
        TemplateSets(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(TemplateError, match="nowhere: no such folder"):
        TemplateSets(tmp_path / "nowhere")
