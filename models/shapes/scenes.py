"""The renderer: pictures of one coloured shape each, the same for the same seed at any resolution.

Every picture the embedded model learned from, is measured on, or is shown with comes from here.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Rgb = tuple[int, int, int]

SIZES = ("small", "medium", "large")
HORIZONTAL = ("left", "middle", "right")
VERTICAL = ("top", "middle", "bottom")
TEXTURES = ("plain", "gradient", "stripes", "checks", "grain")

_SUPERSAMPLING = 3
_MIN_CONTRAST = 110.0


@dataclass(frozen=True, kw_only=True)
class Colour:
    """The box of HSV values that goes by one name: hue in degrees, saturation and value in 0..1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]

    def sample(self, rng: np.random.Generator) -> Rgb:
        """Draw one RGB triple, 0..255, from the box."""
        hue, saturation, value = (rng.uniform(*span) for span in (self.hue, self.saturation, self.value))
        red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
        return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An outline inside the unit circle (y downwards), an optional hole, and how far it may turn.

    ``turn`` is the largest rotation in degrees either way. It is small where turning further would make
    another shape of the list out of it: a square on its corner is a diamond.
    """

    outline: Sequence[Point]
    hole: Sequence[Point] = ()
    turn: float = 180.0


def _arc(start: float, end: float, *, radius: float = 1.0, centre: Point = (0.0, 0.0)) -> list[Point]:
    angles = np.radians(np.linspace(start, end, 73))
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _regular(corners: int) -> list[Point]:
    angles = [math.radians(360 * corner / corners - 90) for corner in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    angles = [math.radians(36 * corner - 90) for corner in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def _heart() -> list[Point]:
    angles = np.radians(np.linspace(0, 360, 90, endpoint=False))
    x = 16 * np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles))
    return [(float(a) / 17, float(b) / 17) for a, b in zip(x, y, strict=True)]


def _cross() -> list[Point]:
    long, short = 0.95, 0.3
    quarter = [(short, -long), (short, -short), (long, -short)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


COLOURS = {
    "red": Colour(hue=(-8, 6), saturation=(0.8, 1), value=(0.72, 1)),
    "orange": Colour(hue=(23, 38), saturation=(0.85, 1), value=(0.9, 1)),
    "yellow": Colour(hue=(51, 62), saturation=(0.7, 1), value=(0.88, 1)),
    "green": Colour(hue=(100, 145), saturation=(0.6, 1), value=(0.4, 1)),
    "cyan": Colour(hue=(174, 190), saturation=(0.65, 1), value=(0.78, 1)),
    "blue": Colour(hue=(214, 242), saturation=(0.75, 1), value=(0.55, 1)),
    "purple": Colour(hue=(270, 300), saturation=(0.6, 1), value=(0.42, 0.75)),
    "pink": Colour(hue=(322, 350), saturation=(0.25, 0.6), value=(0.93, 1)),
    "brown": Colour(hue=(16, 28), saturation=(0.6, 0.88), value=(0.33, 0.56)),
    "black": Colour(hue=(0, 360), saturation=(0, 0.2), value=(0, 0.13)),
    "white": Colour(hue=(0, 360), saturation=(0, 0.04), value=(0.95, 1)),
    "grey": Colour(hue=(0, 360), saturation=(0, 0.06), value=(0.42, 0.66)),
}

SHAPES = {
    "circle": Shape(outline=_arc(0, 360)),
    "square": Shape(outline=[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], turn=12),
    "triangle": Shape(outline=_regular(3)),
    "star": Shape(outline=_star()),
    "heart": Shape(outline=_heart(), turn=25),
    "cross": Shape(outline=_cross(), turn=20),
    "diamond": Shape(outline=[(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], turn=12),
    "pentagon": Shape(outline=_regular(5)),
    "hexagon": Shape(outline=_regular(6)),
    "ring": Shape(outline=_arc(0, 360), hole=_arc(0, 360, radius=0.56)),
    "crescent": Shape(outline=_arc(40, 320) + _arc(297, 63, radius=0.72, centre=(0.44, 0.0))),
    "arrow": Shape(
        outline=[(-1, -0.24), (0.1, -0.24), (0.1, -0.66), (1, 0), (0.1, 0.66), (0.1, 0.24), (-1, 0.24)]
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one picture shows. ``x``, ``y`` and ``radius`` are fractions of its side, ``rotation`` degrees.

    ``seed`` settles what has no name: the texture's shades, grain, stray lines, blur.
    """

    colour: str
    shape: str
    background: str
    ink: Rgb
    paper: Rgb
    texture: str
    x: float
    y: float
    radius: float
    rotation: float
    seed: int

    @property
    def size(self) -> str:
        """One of ``SIZES``: how much of the picture the shape fills."""
        return SIZES[int(np.digitize(self.radius, (0.26, 0.36)))]

    @property
    def horizontal(self) -> str:
        """One of ``HORIZONTAL``: where the shape's centre lies from left to right."""
        return HORIZONTAL[int(np.digitize(self.x, (0.43, 0.57)))]

    @property
    def vertical(self) -> str:
        """One of ``VERTICAL``: where the shape's centre lies from top to bottom."""
        return VERTICAL[int(np.digitize(self.y, (0.43, 0.57)))]


def sample_scene(seed: int, *, colour: str, shape: str) -> Scene:
    """Draw a scene of one (colour, shape) pair; the same seed draws the same scene."""
    rng = np.random.default_rng(seed)
    ink = COLOURS[colour].sample(rng)
    background, paper = _sample_background(rng, colour, ink)
    radius = float(rng.uniform(0.19, 0.48))
    # A large shape has less room to move; it may touch the rim and never leaves the picture.
    room = max(0.5 - radius, 0.0)
    turn = SHAPES[shape].turn
    return Scene(
        colour=colour,
        shape=shape,
        background=background,
        ink=ink,
        paper=paper,
        texture=str(rng.choice(TEXTURES, p=(0.4, 0.2, 0.12, 0.08, 0.2))),
        x=0.5 + float(rng.uniform(-room, room)),
        y=0.5 + float(rng.uniform(-room, room)),
        radius=radius,
        rotation=float(rng.choice((0.0, rng.uniform(-turn, turn)), p=(0.3, 0.7))),
        seed=seed,
    )


def render(scene: Scene, size: int) -> Image.Image:
    """Draw the scene as an RGB picture of ``size`` × ``size`` pixels, the same at every call."""
    rng = np.random.default_rng((scene.seed, 1))
    canvas = Image.fromarray(_background(scene, size, rng))
    if rng.random() < 0.25:
        _scatter(canvas, scene, rng)
    mask = _mask(scene, size)
    if rng.random() < 0.15:
        _contour(canvas, scene, mask, rng)
    canvas.paste(scene.ink, mask=mask)
    return _photograph(canvas, rng)


def as_file(scene: Scene) -> bytes:
    """The scene as a stranger would send it: a JPEG of any quality or a PNG, 48 to 320 pixels wide."""
    rng = np.random.default_rng((scene.seed, 2))
    picture, file = render(scene, int(48 * (320 / 48) ** rng.random())), io.BytesIO()
    if rng.random() < 0.6:
        picture.save(file, "JPEG", quality=int(rng.integers(40, 96)))
    else:
        picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _sample_background(rng: np.random.Generator, colour: str, ink: Rgb) -> tuple[str, Rgb]:
    names = [name for name in COLOURS if name != colour]
    weights = np.array([3.0 if name in {"white", "black", "grey"} else 1.0 for name in names])
    while True:
        name = str(rng.choice(names, p=weights / weights.sum()))
        paper = COLOURS[name].sample(rng)
        if math.dist(ink, paper) >= _MIN_CONTRAST:
            return name, paper


def _background(scene: Scene, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Texture between two shades of the background's colour: uint8 (size, size, 3)."""
    ramp = np.linspace(0, 1, size)
    angle, waves = rng.uniform(0, 2 * math.pi), rng.uniform(3, 9)
    along = math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]
    across = math.sin(angle) * ramp[None, :] - math.cos(angle) * ramp[:, None]
    blend = np.zeros((size, size))
    if scene.texture == "gradient":
        blend = (along - along.min()) / np.ptp(along)
    elif scene.texture == "stripes":
        blend = (np.sin(2 * math.pi * waves * along) > 0).astype(float)
    elif scene.texture == "checks":
        product = np.sin(2 * math.pi * waves * along) * np.sin(2 * math.pi * waves * across)
        blend = (product > 0).astype(float)
    elif scene.texture == "grain":
        cells = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        blend = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC)) / 255
    shade = COLOURS[scene.background].sample(rng)
    first, second = np.array(scene.paper, float), np.array(shade, float)
    return np.asarray(first + blend[..., None] * (second - first), np.uint8)


def _mask(scene: Scene, size: int) -> Image.Image:
    """The shape's coverage of each pixel, "L", antialiased by drawing it larger."""
    side = size * _SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    shape = SHAPES[scene.shape]
    draw.polygon(_place(shape.outline, scene, side), fill=255)
    if shape.hole:
        draw.polygon(_place(shape.hole, scene, side), fill=0)
    return mask.reduce(_SUPERSAMPLING)


def _place(points: Sequence[Point], scene: Scene, side: int) -> list[Point]:
    turn = math.radians(scene.rotation)
    cos, sin = math.cos(turn) * scene.radius, math.sin(turn) * scene.radius
    return [((scene.x + x * cos - y * sin) * side, (scene.y + x * sin + y * cos) * side) for x, y in points]


def _scatter(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Thin lines and dots behind the shape, in any colour but its own."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    names = [name for name in COLOURS if name != scene.colour]
    width = max(1, round(side * 0.012))
    for _ in range(rng.integers(1, 5)):
        fill = COLOURS[str(rng.choice(names))].sample(rng)
        x0, y0, x1, y1 = rng.uniform(0, side, 4)
        if rng.random() < 0.5:
            draw.line((x0, y0, x1, y1), fill=fill, width=width)
        else:
            draw.ellipse((x0, y0, x0 + 2 * width, y0 + 2 * width), fill=fill)


def _contour(canvas: Image.Image, scene: Scene, mask: Image.Image, rng: np.random.Generator) -> None:
    """A thin dark rim around the shape, as clip art has it."""
    width = 2 * max(1, round(canvas.width * 0.012)) + 1
    rim = COLOURS["black" if scene.colour != "black" else "white"].sample(rng)
    canvas.paste(rim, mask=mask.filter(ImageFilter.MaxFilter(width)))


def _photograph(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur and sensor noise, each in a part of the pictures only."""
    if rng.random() < 0.25:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.012)) * canvas.width))
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(1, 14), (canvas.height, canvas.width, 1 + 2 * int(rng.integers(2))))
        canvas = Image.fromarray((np.asarray(canvas) + noise).clip(0, 255).astype(np.uint8))
    return canvas
