"""The sample pictures of the repository: ``python -m models.shapes.samples`` draws them into ``samples/``."""

from __future__ import annotations

from pathlib import Path

from models.shapes.scenes import render, sample_scene

SAMPLES = Path(__file__).parents[2] / "samples"

# The file name says what it shows; "red circle" and "green square" are pairs the model was never trained on.
SEEDS = {
    "red-circle.png": 70_001,
    "blue-star.jpg": 70_002,
    "green-triangle.webp": 70_003,
    "yellow-heart.png": 70_004,
    "purple-arrow.jpg": 70_005,
    "white-crescent.jpg": 70_006,
    "green-square.webp": 70_007,
    "orange-ring.jpg": 70_008,
}


def draw_samples(folder: Path = SAMPLES) -> None:
    """Draw every sample, 320 × 320 pixels, in the format its name asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in SEEDS.items():
        colour, shape = Path(name).stem.split("-")
        render(sample_scene(seed, colour=colour, shape=shape), 320).save(folder / name, quality=88)


if __name__ == "__main__":
    draw_samples()
