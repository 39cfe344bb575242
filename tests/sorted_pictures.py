"""Folders of one sub-folder a class, and what an evaluation of them must find, computed the plain way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.registry import LoadedModel
from models.shapes.pairs import Pair
from models.shapes.scenes import render, sample_scene

_FIRST_SEED = 7_000_000_000


def write_blurred_shapes(folder: Path, pairs: list[Pair], *, copies: int) -> Path:
    """Scenes with most of their detail taken away: sharp ones the embedded model hardly ever gets wrong."""
    noise = np.random.default_rng(0)
    for number, (colour, shape) in enumerate(pairs):
        place = folder / f"{colour}_{shape}"
        place.mkdir(parents=True)
        for copy in range(copies):
            scene = sample_scene(_FIRST_SEED + number * copies + copy, colour=colour, shape=shape)
            coarse = render(scene, 64).resize((11, 11), Image.Resampling.BILINEAR).resize((64, 64))
            noisy = np.asarray(coarse, float) + noise.normal(0, 25, (64, 64, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{copy}.png")
    return folder


@dataclass
class Plain:
    """An evaluation without ``service`` and ``prompts``: every picture and every prompt by itself."""

    model: LoadedModel
    folder: Path

    def __post_init__(self) -> None:
        self.classes = sorted(path.name for path in self.folder.iterdir())
        files = [(place, file) for place, name in enumerate(self.classes) for file in self._files(name)]
        self.truth = np.array([place for place, _ in files])
        pixels = [self.model.preprocess(file.read_bytes()) for _, file in files]
        self.features = np.concatenate([self.model.encode_pixels([one]) for one in pixels]).astype(float)

    def _files(self, name: str) -> list[Path]:
        return sorted((self.folder / name).glob("*.png"))

    def prompts(self, templates: list[str]) -> Any:
        """Unit features of each class under each template, float64 (classes, templates, D)."""
        return np.array(
            [
                [
                    self.model.encode_texts([template.replace("{label}", name.replace("_", " "))])[0]
                    for template in templates
                ]
                for name in self.classes
            ],
            float,
        )

    def order(self, prompts: Any) -> Any:
        """Classes of each picture, best first, under the ensemble of all templates in ``prompts``."""
        mean = prompts.mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return np.argsort(-(self.features @ mean.T), axis=1, kind="stable")

    def top(self, prompts: Any, k: int) -> Any:
        """Whether the truth is among the first ``k``, bool (pictures,)."""
        return (self.order(prompts)[:, :k] == self.truth[:, np.newaxis]).any(axis=1)


def check_against_plain(found: dict[str, Any], plain: Plain, templates: list[str]) -> None:
    """One template set of ``clipserve eval``'s JSON must say what the plain way says."""
    prompts = plain.prompts(templates)
    first, right = plain.order(prompts)[:, 0], plain.top(prompts, 1)
    assert found["top1"]["value"] == right.mean()
    assert found["top5"]["value"] == plain.top(prompts, 5).mean()
    confusion = np.zeros((len(plain.classes),) * 2, int)
    for truth, answer in zip(plain.truth, first, strict=True):
        confusion[truth, answer] += 1
    assert found["confusion"] == confusion.tolist()
    for place, one in enumerate(found["classes"]):
        mine = plain.truth == place
        assert one["label"] == plain.classes[place].replace("_", " ")
        assert one["pictures"] == mine.sum()
        assert one["top1"]["value"] == right[mine].mean()
        assert one["top5"]["value"] == plain.top(prompts, 5)[mine].mean()
    means = [right[plain.truth == place].mean() for place in range(len(plain.classes))]
    assert np.isclose(found["mean_per_class"]["value"], np.mean(means))
    assert [one["template"] for one in found["templates"]] == templates
    for place, one in enumerate(found["templates"]):
        assert one["alone"]["value"] == plain.top(prompts[:, [place]], 1).mean()
        if len(templates) == 1:
            assert one["worth"] is None
        else:
            rest = plain.top(np.delete(prompts, place, axis=1), 1).mean()
            assert np.isclose(one["worth"]["value"], right.mean() - rest, atol=1e-12)


def write_templates(file: Path, templates: list[str]) -> Path:
    file.write_text(json.dumps({"templates": templates}))
    return file
