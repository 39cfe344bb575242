"""The committed files of the embedded model, as the server would use them. No torch here."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from models.shapes.captions import ENSEMBLE, UNSEEN_TEMPLATES
from models.shapes.evaluate import BEGIN, END, FILES, Accuracy, Exam, class_matrix, write_card
from models.shapes.pairs import HELD_OUT_PAIRS, PAIRS
from models.shapes.samples import SAMPLES, SEEDS
from models.shapes.scenes import COLOURS, SHAPES, render, sample_scene

PHOTO = ("a photo of a {label}.",)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return ModelRegistry(options=RuntimeOptions(threads=2)).load("shapes")


@pytest.fixture(scope="module")
def exam(model: LoadedModel) -> Exam:
    return Exam.sit(model, copies=3, first_seed=8_000_000_000)


# On some four hundred pictures a model of 97 % falls below 95 % once in a hundred draws, but the draw is
# fixed: what can change here are the files and the renderer.
def test_fresh_pictures_of_all_pairs_are_recognised(exam: Exam):
    assert exam.accuracy(exam.answers(ENSEMBLE)).value >= 0.95


def test_pairs_never_trained_on_are_recognised(exam: Exam):
    assert exam.accuracy(exam.answers(ENSEMBLE), HELD_OUT_PAIRS).value >= 0.9


@pytest.mark.parametrize("template", [PHOTO[0], *UNSEEN_TEMPLATES])
def test_one_template_does_and_an_unseen_one_too(exam: Exam, template: str):
    assert exam.accuracy(exam.answers([template])).value >= 0.9


@pytest.mark.parametrize("templates", [ENSEMBLE, PHOTO])
@pytest.mark.parametrize("name", SEEDS)
def test_the_samples_are_recognised_with_confidence(
    model: LoadedModel, name: str, templates: tuple[str, ...]
):
    label = tuple(Path(name).stem.split("-"))
    features = model.encode_images([(SAMPLES / name).read_bytes()])
    logits = model.manifest.scoring.logit_scale * (features @ class_matrix(model, templates).T)[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert PAIRS[int(probabilities.argmax())] == label
    assert probabilities.max() > 0.5


def test_one_attribute_alone_is_a_label_too(exam: Exam):
    assert exam.choice("a {value} shape", "colour", tuple(COLOURS)).value >= 0.95
    assert exam.choice("a {value}", "shape", tuple(SHAPES)).value >= 0.95
    sizes = exam.choice("a {value} {label}", "size", ("small", "large"))
    assert sizes.value >= 0.9
    assert sizes.total == sum(scene.size != "medium" for scene in exam.scenes)


def test_large_pictures_do_as_well_as_small_ones(model: LoadedModel):
    scenes = [sample_scene(8_500_000_000 + n, colour=c, shape=s) for n, (c, s) in enumerate(PAIRS)]
    files = [_png(render(scene, 400)) for scene in scenes]
    answers = (model.encode_images(files) @ class_matrix(model, ENSEMBLE).T).argmax(axis=1)
    assert (answers == np.arange(len(PAIRS))).mean() >= 0.93


def test_the_files_are_small_enough_for_a_repository(model: LoadedModel):
    model.manifest.verify_files(FILES)
    assert sum(entry.size for entry in model.manifest.files.values()) < 8_000_000


def test_short_prompts_need_no_padding(model: LoadedModel):
    """The end token is the highest id and the tower is causal: dynamic length must have been proven."""
    assert model.manifest.text.dynamic_length
    short, long = model.tokenizer(["a red circle", "a picture of a large red circle on a blue background"])
    alone = model.encode_tokens([short.ids])[0]
    together = model.encode_tokens([short.ids, long.ids])[0]
    assert alone @ together > 0.99999


def test_measuring_needs_no_torch():
    code = "import sys, models.shapes.evaluate, models.shapes.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_card_holds_the_figures():
    card = (FILES / "README.md").read_text()
    figures = card[card.index(BEGIN) : card.index(END)]
    for template in (*ENSEMBLE, *UNSEEN_TEMPLATES):
        assert f"`{template}`" in figures


def test_figures_are_written_between_the_markers_only(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_card(card, "new")
    assert card.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    card.write_text("no markers")
    with pytest.raises(ValueError, match="no place for the figures"):
        write_card(card, "new")


def test_the_interval_is_wilsons():
    # Brown, Cai and DasGupta 2001 discuss it; 10 of 10 gives a lower end of 1 / (1 + z² / n).
    low, high = Accuracy(right=10, total=10).interval
    assert low == pytest.approx(1 / (1 + 1.96**2 / 10))
    assert high == 1.0


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
