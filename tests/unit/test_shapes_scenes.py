import io
import itertools

import numpy as np
import pytest
from PIL import Image

from models.shapes.pairs import HELD_OUT_PAIRS, PAIRS, TRAINING_PAIRS
from models.shapes.samples import SAMPLES, SEEDS, draw_samples
from models.shapes.scenes import COLOURS, SHAPES, as_file, render, sample_scene


def _pixels(seed: int, *, colour: str = "red", shape: str = "star", size: int = 64) -> np.ndarray:
    return np.asarray(render(sample_scene(seed, colour=colour, shape=shape), size))


def test_a_seed_decides_every_pixel_and_byte():
    np.testing.assert_array_equal(_pixels(5), _pixels(5))
    assert (_pixels(5) != _pixels(6)).any()
    scene = sample_scene(5, colour="red", shape="star")
    assert as_file(scene) == as_file(scene)


@pytest.mark.parametrize("size", [48, 65, 400])
def test_a_scene_renders_at_any_resolution(size):
    assert _pixels(1, size=size).shape == (size, size, 3)


def test_a_scene_looks_the_same_at_any_resolution():
    scene = next(
        scene
        for seed in itertools.count()
        if (scene := sample_scene(seed, colour="blue", shape="circle")).texture == "plain"
        and scene.radius > 0.4
    )
    large = np.asarray(render(scene, 320).resize((64, 64), Image.Resampling.BOX), float)
    assert abs(large - np.asarray(render(scene, 64), float)).mean() < 12


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in {"ring", "crescent"}])
def test_the_ink_is_in_the_middle_of_the_shape(shape):
    for seed in range(8):
        scene = sample_scene(seed, colour="green", shape=shape)
        x, y = int(scene.x * 200), int(scene.y * 200)
        centre = np.asarray(render(scene, 200), float)[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1))
        assert abs(centre - scene.ink).max() < 25, f"seed {seed}"


def test_a_ring_has_a_hole():
    scene = sample_scene(3, colour="green", shape="ring")
    centre = np.asarray(render(scene, 200), float)[int(scene.y * 200), int(scene.x * 200)]
    assert abs(centre - scene.ink).max() > 50


def test_shapes_stay_inside_the_picture():
    for seed in range(200):
        scene = sample_scene(seed, colour="red", shape="circle")
        for centre in (scene.x, scene.y):
            assert scene.radius - 1e-9 <= centre <= 1 - scene.radius + 1e-9


def test_ink_and_paper_never_share_a_name_and_always_contrast():
    for seed, colour in itertools.product(range(30), COLOURS):
        scene = sample_scene(seed, colour=colour, shape="circle")
        assert scene.background != colour
        assert np.linalg.norm(np.subtract(scene.ink, scene.paper)) >= 110


def test_files_are_pictures_in_both_formats():
    scenes = [sample_scene(seed, colour="pink", shape="heart") for seed in range(20)]
    formats = {Image.open(io.BytesIO(as_file(scene))).format for scene in scenes}
    assert formats == {"JPEG", "PNG"}


def test_pairs_are_split_without_a_rest_and_every_word_is_met_in_training():
    assert len(HELD_OUT_PAIRS) >= 15
    assert {*HELD_OUT_PAIRS, *TRAINING_PAIRS} == set(PAIRS)
    assert not {*HELD_OUT_PAIRS} & {*TRAINING_PAIRS}
    for colour, shape in PAIRS:
        assert sum(colour == other for other, _ in TRAINING_PAIRS) >= 10
        assert sum(shape == other for _, other in TRAINING_PAIRS) >= 10


def test_the_committed_samples_are_what_the_renderer_draws(tmp_path):
    draw_samples(tmp_path)
    assert {path.name for path in SAMPLES.iterdir()} >= set(SEEDS)
    for name in SEEDS:
        drawn, committed = (np.asarray(Image.open(folder / name), float) for folder in (tmp_path, SAMPLES))
        assert abs(drawn - committed).mean() < 2, name
