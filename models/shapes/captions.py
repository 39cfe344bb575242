"""The words the embedded model learns from: captions of scenes, and which captions are true of which scenes.

A caption names a shape, a colour or both, and now and then the size, the place and the background. Two
scenes of one batch may therefore share a caption; ``true_of`` says so, and the loss counts both as right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.shapes.scenes import COLOURS, HORIZONTAL, SHAPES, SIZES, VERTICAL, Scene

# The template set `shapes` of the server holds the same list.
ENSEMBLE = (
    "a {label}",
    "a {label}.",
    "a picture of a {label}",
    "a drawing of a {label}",
    "an image of a {label}",
    "there is a {label}",
    "this is a {label}",
    "a photo of a {label}.",
)
TRAINING_TEMPLATES = (
    *ENSEMBLE,
    "{label}",
    "the {label}",
    "one {label}",
    "an image of the {label}.",
    "there is a {label} here.",
    "here is a {label}",
    "we see a {label} here.",
    "a picture with a {label} in it",
    "it shows a {label}.",
    "look, a {label}!",
    "this picture shows the {label}",
    "an icon of a {label}",
    "a photo of the {label}.",
    "a photo of one {label}.",
)
# Never trained on: a new order of known words, and words that are in no caption.
UNSEEN_TEMPLATES = (
    "here we look at the picture: it is a {label}, this one",
    "embroidery depicting a {label} upon linen.",
)

COLOUR_WORDS = {name: (name,) for name in COLOURS} | {
    "cyan": ("cyan", "cyan", "turquoise", "aqua"),
    "purple": ("purple", "purple", "violet"),
    "grey": ("grey", "gray"),
}
SHAPE_WORDS = {name: (name,) for name in SHAPES} | {
    "circle": ("circle", "circle", "disc", "dot"),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "ring": ("ring", "ring", "donut"),
    "crescent": ("crescent", "crescent", "crescent moon"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_MEDIA = _words(
    """
    photo picture image drawing painting sketch icon cartoon rendering sculpture print poster logo
    symbol sign screenshot illustration graphic photograph tattoo doodle close-up toy view
    """
)
_ADJECTIVES = _words(
    """
    good bad blurry bright dark clean dirty cropped pixelated nice weird cool plain simple new old
    low-quality jpeg corrupted black-and-white digital flat
    """
)
_TAILS = (
    " on a page",
    " in a frame",
    " in a video game",
    " on a wall",
    " for children",
    " of mine",
    " made of paper",
)
# Around a label, in no order: prompts that say more than the label must not lose it.
_NOISE_WORDS = _words(
    """
    about after again all also and any are at away be because been before best book but by can come
    could day did do down each easy even every far few find first for from full get give go great
    had has have he her high him his home house how i if in into it its just keep kind know last let
    life like long made make many may me more most much must my name near need never next no not now
    of off often on only open or other our out over own part people place play point put quite
    rather real right said same say school seem set she should show side so some soon still such
    take tell than that their them then these they thing think those time to today too took try two
    under up us use very want was water way well were what when where which while who why will with
    word work world would year yes yet you your photo image texture test render
    """
)

_UNSAID = -1
_COLUMNS = (tuple(COLOURS), tuple(SHAPES), tuple(COLOURS), SIZES, HORIZONTAL, VERTICAL)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text and what it claims; None is left unsaid."""

    text: str
    colour: str | None = None
    shape: str | None = None
    background: str | None = None
    size: str | None = None
    horizontal: str | None = None
    vertical: str | None = None


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Write a caption that is true of the scene, lower-cased, of at most about 25 tokens."""
    claims: dict[str, str] = {}
    label = _label(scene, claims, rng)
    if scene.size in SIZE_WORDS and rng.random() < 0.12:
        claims["size"] = scene.size
        label = f"{_pick(SIZE_WORDS[scene.size], rng)} {label}"
    text = _fill(_template(rng), label, rng)
    if rng.random() < 0.12:
        text = _end_with(text, _background_phrase(scene, claims, rng))
    elif rng.random() < 0.12:
        text = _end_with(text, _place_phrase(scene, claims, rng))
    return Caption(text=text, **claims)


def claims_of(captions: Sequence[Caption]) -> NDArray[np.int8]:
    """What each caption claims, as indices, -1 where it is silent: (captions, 6)."""
    return _table([(c.colour, c.shape, c.background, c.size, c.horizontal, c.vertical) for c in captions])


def facts_of(scenes: Sequence[Scene]) -> NDArray[np.int8]:
    """What holds of each scene, in the columns of ``claims_of``: (scenes, 6)."""
    return _table([(s.colour, s.shape, s.background, s.size, s.horizontal, s.vertical) for s in scenes])


def true_of(claims: NDArray[np.int8], facts: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which captions are true of which scenes: (captions, scenes)."""
    silent = claims[:, None, :] == _UNSAID
    agrees = claims[:, None, :] == facts[None, :, :]
    return np.asarray((silent | agrees).all(axis=2))


def _table(rows: Sequence[tuple[str | None, ...]]) -> NDArray[np.int8]:
    indices = [
        [_UNSAID if value is None else names.index(value) for names, value in zip(_COLUMNS, row, strict=True)]
        for row in rows
    ]
    return np.array(indices, np.int8)


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _label(scene: Scene, claims: dict[str, str], rng: np.random.Generator) -> str:
    colour, shape = _pick(COLOUR_WORDS[scene.colour], rng), _pick(SHAPE_WORDS[scene.shape], rng)
    kind = rng.random()
    if kind > 0.12:
        claims["colour"] = scene.colour
    if not 0.12 < kind < 0.24:
        claims["shape"] = scene.shape
    if kind <= 0.12:
        return shape
    if kind < 0.24:
        thing = _pick(("shape", "object", "figure", "thing"), rng)
        return _pick((f"{colour} {thing}", f"{thing} in {colour}", colour), rng)
    if kind < 0.34:
        return _pick((f"{shape} in {colour}", f"{colour}-coloured {shape}", f"{shape} that is {colour}"), rng)
    return f"{colour} {shape}"


def _template(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.4:
        return _pick(TRAINING_TEMPLATES, rng)
    if kind < 0.75:
        adjective = _pick(_ADJECTIVES, rng) + " " if rng.random() < 0.4 else ""
        tail = _pick(_TAILS, rng) if rng.random() < 0.15 else ""
        article = _pick(("a ", "the ", ""), rng)
        other = _pick(("a", "a", "the", "one", "my"), rng)
        return f"{article}{adjective}{_pick(_MEDIA, rng)} of {other} {{label}}{tail}{_pick(('', '.'), rng)}"
    before = " ".join(_noise_word(rng) for _ in range(rng.integers(0, 6)))
    after = " ".join(_noise_word(rng) for _ in range(rng.integers(0, 4)))
    return f"{before} {_pick(('a ', 'the ', ''), rng)}{{label}} {after}{_pick(('', '.'), rng)}".strip()


def _noise_word(rng: np.random.Generator) -> str:
    """A common word, or letters in no order: words of no caption are made of the same few-letter tokens."""
    if rng.random() < 0.7:
        return _pick(_NOISE_WORDS, rng)
    return "".join(chr(letter) for letter in rng.integers(ord("a"), ord("z") + 1, rng.integers(2, 7)))


def _fill(template: str, label: str, rng: np.random.Generator) -> str:
    # Servers fill templates blindly ("a orange ring"), people write "an": both must do.
    if label[0] in "aeiou" and rng.random() < 0.5:
        template = template.replace("a {label}", "an {label}")
    return template.replace("{label}", label)


def _end_with(text: str, phrase: str) -> str:
    return f"{text.rstrip('.!')}{phrase}{'.' if text.endswith('.') else ''}"


def _background_phrase(scene: Scene, claims: dict[str, str], rng: np.random.Generator) -> str:
    claims["background"] = scene.background
    colour = _pick(COLOUR_WORDS[scene.background], rng)
    return _pick((f" on a {colour} background", f" on {colour}", f" in front of a {colour} background"), rng)


def _place_phrase(scene: Scene, claims: dict[str, str], rng: np.random.Generator) -> str:
    if (scene.horizontal, scene.vertical) == ("middle", "middle"):
        claims |= {"horizontal": "middle", "vertical": "middle"}
        return _pick((" in the middle", " in the centre"), rng)
    sides = {"vertical": scene.vertical, "horizontal": scene.horizontal}
    said = {axis: side for axis, side in sides.items() if side != "middle"}
    claims |= said
    return f" {_pick(('on', 'at'), rng)} the {' '.join(said.values())}"
