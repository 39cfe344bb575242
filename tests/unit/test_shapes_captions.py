import json
from pathlib import Path

import numpy as np

from models.shapes.captions import (
    COLOUR_WORDS,
    ENSEMBLE,
    SHAPE_WORDS,
    TRAINING_TEMPLATES,
    UNSEEN_TEMPLATES,
    Caption,
    claims_of,
    describe,
    facts_of,
    true_of,
)
from models.shapes.pairs import TRAINING_PAIRS
from models.shapes.scenes import Scene, sample_scene
from models.shapes.tokenizer import CONTEXT_LENGTH, ShapesTokenizer
from models.tokenizer import Tokenizer

TEMPLATE_SET = Path(__file__).parents[2] / "prompts" / "template_sets" / "shapes.json"


def _scenes(count: int) -> list[Scene]:
    pairs = [TRAINING_PAIRS[number % len(TRAINING_PAIRS)] for number in range(count)]
    return [sample_scene(number, colour=colour, shape=shape) for number, (colour, shape) in enumerate(pairs)]


def _captions(scenes: list[Scene]) -> list[Caption]:
    rng = np.random.default_rng(0)
    return [describe(scene, rng) for scene in scenes]


def test_the_template_set_of_the_server_is_the_ensemble_that_is_measured():
    assert tuple(json.loads(TEMPLATE_SET.read_text())["templates"]) == ENSEMBLE


def test_every_caption_is_true_of_its_scene():
    scenes = _scenes(1000)
    assert true_of(claims_of(_captions(scenes)), facts_of(scenes)).diagonal().all()


def test_captions_say_what_they_claim():
    for caption in _captions(_scenes(1000)):
        assert caption.text == caption.text.lower()
        assert caption.colour or caption.shape
        for claimed, words in ((caption.colour, COLOUR_WORDS), (caption.shape, SHAPE_WORDS)):
            assert claimed is None or any(word in caption.text for word in words[claimed])


def test_a_silent_caption_is_true_of_more_scenes_and_a_false_one_of_none():
    scenes = _scenes(400)
    scene = scenes[0]
    full = Caption(text="", colour=scene.colour, shape=scene.shape)
    half = Caption(text="", shape=scene.shape)
    false = Caption(text="", colour=scene.colour, shape=scene.shape, background=scene.colour)
    true = true_of(claims_of([full, half, false]), facts_of(scenes))
    expected = [
        [(other.colour, other.shape) == (scene.colour, scene.shape) for other in scenes],
        [other.shape == scene.shape for other in scenes],
        [False] * len(scenes),
    ]
    np.testing.assert_array_equal(true, expected)


def test_the_unseen_templates_are_unseen():
    texts = [caption.text for caption in _captions(_scenes(5000))]
    words = {word for text in texts for word in text.split()}
    assert not {*UNSEEN_TEMPLATES} & {*TRAINING_TEMPLATES}
    for template in UNSEEN_TEMPLATES:
        before = template.partition("{label}")[0]
        assert not any(text.startswith(before) for text in texts)
    assert not {"embroidery", "depicting", "upon", "linen"} & words


def test_the_file_gives_the_ids_that_training_saw(tmp_path):
    texts = [caption.text for caption in _captions(_scenes(500))]
    tokenizer = ShapesTokenizer.train(texts, vocabulary=600)
    spec = tokenizer.write(tmp_path / "tokenizer.json")
    served = Tokenizer(tmp_path / "tokenizer.json", spec)
    for text in [*texts, "", "A RED Circle", "naïve 日本 😀", "a blue star " * 40, "&lt;b&gt; ends here"]:
        cleaned = " ".join(text.replace("&lt;", "<").replace("&gt;", ">").split())
        ids = tokenizer([cleaned])[0]
        np.testing.assert_array_equal(served([text])[0].ids, ids)
        assert ids.max() == spec.end_token
        assert len(ids) == CONTEXT_LENGTH


def test_every_unicode_string_has_tokens():
    tokenizer = ShapesTokenizer.train(["a red circle"], vocabulary=300)
    plain, strange = tokenizer(["", "\u0416\U0001f600"])
    assert (strange > 0).sum() > (plain > 0).sum() == 2
