"""Which (colour, shape) pairs the embedded model is trained on, and which it never sees."""

from __future__ import annotations

from models.shapes.scenes import COLOURS, SHAPES

Pair = tuple[str, str]


def _is_held_out(colour: int, shape: int) -> bool:
    # A slanted grid: every colour and every shape misses one or two partners and meets all the others.
    return (5 * colour + shape) % 8 == 0


PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT_PAIRS: tuple[Pair, ...] = tuple(
    (colour, shape)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if _is_held_out(i, j)
)
TRAINING_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
