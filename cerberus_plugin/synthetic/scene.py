"""Six synthetic cameras and the images that they take of a synthetic person.

A place is a wide image, drawn once. An image of a person is a crop of it, with the person and sometimes an obstacle in
front, and with the effects of the camera: light, colours, blur, resolution and noise.
Images are uint8 RGB, 128 pixels high and 64 wide, unless stated otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import pi

import cv2
import numpy as np

from .figure import Pen, draw_figure
from .people import Person, generator
from .places import PLACE_HEIGHT, PLACE_WIDTH, draw_place

HEIGHT, WIDTH = 128, 64
NUM_CAMERAS = 6
_SUPER = 2  # people are drawn at twice the size, then downsampled

# Place, height of the horizon (share of the image), downward tilt (radians), factors of red, green and blue, gamma,
# blur (pixels), relative resolution, noise (grey levels), direction of the light (1 and -1: from the sides).
_CAMERAS = (
    ("plaza", 0.36, 0.16, (1.00, 0.98, 0.94), 1.00, 0.35, 1.00, 4.0, 1.0),
    ("shop", 0.46, 0.10, (1.16, 0.98, 0.72), 0.88, 0.60, 0.85, 6.0, -1.0),
    ("park", 0.40, 0.14, (0.86, 1.10, 0.86), 1.18, 0.45, 0.95, 5.0, 1.0),
    ("street", 0.34, 0.20, (0.82, 0.96, 1.20), 1.00, 0.70, 0.80, 7.0, -1.0),
    ("hall", 0.50, 0.06, (1.10, 0.90, 1.04), 1.35, 0.55, 0.90, 8.0, 0.3),
    ("wall", 0.30, 0.24, (0.74, 0.80, 1.00), 0.78, 1.00, 0.62, 10.0, -0.5),
)


@dataclass(frozen=True)
class Camera:
    """A camera and its place.

    Args:
        difficulty: 0 to 1.
        tilt: downward tilt in radians.
        matrix: float32 (3, 3), colour transform of RGB.
        gamma: exponent of the grey levels.
        blur: standard deviation of the Gaussian blur in pixels.
        resolution: resolution of the image as a share of the full one.
        noise: noise in grey levels.
        light: direction of the light, -1 to 1.
        place: uint8 (192, 720, 3).
    """

    difficulty: float
    tilt: float
    matrix: np.ndarray
    gamma: float
    blur: float
    resolution: float
    noise: float
    light: float
    place: np.ndarray


@dataclass(frozen=True)
class View:
    """Pose, position and light of one image.

    Args:
        turn: walking direction in radians: 0 faces the camera, pi/2 walks to the right.
        phase: position in the walking cycle, 0 to 1.
        size: height of an adult as a share of the image.
        x: horizontal shift of the person as a share of the width.
        y: vertical shift of the person as a share of the height.
        where: horizontal position of the background in the place, 0 to 1.
        zoom: magnification of the background.
        light: exposure, 1 for that of the camera.
        warmth: colour temperature, -1 to 1.
        shadow: strength of the edge of a cast shadow.
        smear: motion blur in pixels.
        front: obstacle in front of the person: "", pole, bush, car or person.
        front_x: horizontal position of the obstacle as a share of the width.
        behind: another person in the background.
        passer: the person in front, if `front` is "person".
    """

    turn: float = 0.0
    phase: float = 0.1
    size: float = 0.86
    x: float = 0.0
    y: float = 0.0
    where: float = 0.5
    zoom: float = 1.0
    light: float = 1.0
    warmth: float = 0.0
    shadow: float = 0.0
    smear: int = 0
    front: str = ""
    front_x: float = 0.5
    behind: Person | None = None
    passer: Person | None = None


@lru_cache(maxsize=32)
def make_camera(number: int, seed: int = 0, difficulty: float = 0.0) -> Camera:
    """Create a camera of a dataset; colours, blur and noise deviate more from neutral ones for a higher difficulty.

    Args:
        number: 1 to 6.
        seed: seed of the dataset.
        difficulty: 0 to 1.
    """
    place, horizon, tilt, cast, gamma, blur, resolution, noise, light = _CAMERAS[number - 1]
    rng = generator(seed, "camera", number)
    amount = min(1.0, 0.15 + 1.1 * difficulty)
    cast = 1 + amount * (np.array(cast) - 1) * rng.uniform(0.9, 1.2)
    mixing = rng.uniform(-0.10, 0.10, (3, 3)) * amount
    gray = 0.35 * amount * rng.random()  # faded colours
    matrix = np.diag(cast) @ (np.eye(3) * (1 - gray) + gray / 3 + mixing - np.diag(mixing.sum(axis=1)))
    return Camera(difficulty, tilt, matrix.astype(np.float32), 1 + amount * (gamma - 1), blur * (0.4 + amount),
                  1 - 0.75 * amount * (1 - resolution), noise * (0.25 + amount), light,
                  draw_place(place, horizon, generator(seed, "place", number)))


def sample_view(camera: Camera, rng: np.random.Generator, turn: float, where: float, others=()) -> View:
    """Sample the view of a person who walks past a camera.

    Args:
        camera: its difficulty scales the variation.
        rng: random generator.
        turn: walking direction in radians; the view deviates from it by at most 0.35.
        where: position of the background, 0 to 1.
        others: up to two persons who may appear in front and behind.
    """
    d, u = camera.difficulty, rng.random(14)
    spread = 0.35 + 0.65 * d
    front = ""
    if u[0] < 0.04 + 0.36 * d:
        front = ("pole", "bush", "car", "person")[int(u[1] * 4)]
    return View(
        turn=turn + (u[2] - 0.5) * 0.7, phase=u[3], size=0.86 + (u[4] - 0.55) * 0.30 * spread,
        x=(u[5] - 0.5) * 0.36 * spread, y=(u[6] - 0.5) * 0.20 * spread,
        where=where + (u[7] - 0.5) * 0.12, zoom=0.85 + 0.4 * u[8],
        light=float(np.exp((u[9] - 0.5) * 1.3 * d)), warmth=(u[10] - 0.5) * 1.6 * d,
        shadow=0.55 * d * u[11] if u[11] > 0.5 else 0.0, smear=int(3.2 * d * u[12]),
        front=front, front_x=0.5 + (0.62 * (u[13] - 0.5)),
        passer=others[0] if others and front == "person" else None,
        behind=others[1] if len(others) > 1 and u[1] < 0.15 + 0.25 * d else None,
    )


def spoil(view: View, rng: np.random.Generator) -> View:
    """Change a view to that of a wrong bounding box, with the person too large, too far to the side, or too small."""
    u = rng.random(4)
    side = 1 if u[0] < 0.5 else -1
    kind = int(u[1] * 3)
    if kind == 0:
        return replace(view, size=1.6 + u[2], y=0.3 + 0.9 * u[3], x=side * 0.5 * u[2])
    if kind == 1:
        return replace(view, x=side * (0.55 + 0.25 * u[2]))
    return replace(view, size=0.34 + 0.2 * u[2], y=-0.35 * u[3], x=side * 0.3 * u[3])


def loosen(view: View, above: float, below: float) -> View:
    """Enlarge the bounding box of a view at its aspect ratio: the person is smaller and shifted, with more background.

    Args:
        view: view with the original box.
        above: added height above, as a share of the original height.
        below: added height below, as a share of the original height.

    Examples:
        >>> loosen(View(size=0.8), above=0.5, below=0.5).size
        0.4
    """
    scale = 1 + above + below
    size = view.size / scale
    foot = (_foot(view) + above) / scale
    return replace(view, size=size, x=view.x / scale, y=foot - _foot(View(size=size)), zoom=view.zoom / scale)


def _foot(view: View) -> float:
    """Return the vertical position of the feet from the top, as a share of the height."""
    return 0.5 + 0.46 * min(view.size, 1.0) + view.y


def draw_person(person: Person | None, camera: Camera, view: View, rng: np.random.Generator) -> np.ndarray:
    """Draw the image that a camera takes of a person.

    The numbers taken from `rng` do not depend on the person, so equal generators give comparable images.

    Args:
        person: None for an image of the place only.
        camera: the camera and its place.
        view: pose, position and light.
        rng: random generator.

    Returns:
        uint8 RGB (128, 64, 3).
    """
    u = rng.random(8)
    picture = _cut(camera.place, view, u[0])
    foot = (0.5 + view.x) * WIDTH, _foot(view) * HEIGHT
    if view.behind is not None:
        size = view.size * (0.62 + 0.2 * u[1])
        place = foot[0] + (0.45 if u[2] < 0.5 else -0.45) * WIDTH, foot[1] - 0.10 * HEIGHT
        _put(picture, view.behind, place, size, 2 * pi * u[3], u[4], camera)
    if person is not None:
        _put(picture, person, foot, view.size, view.turn, view.phase, camera)
    if view.passer is not None:
        place = (view.front_x + (0.30 if view.front_x > 0.5 else -0.30)) * WIDTH, foot[1] + 0.10 * HEIGHT
        _put(picture, view.passer, place, view.size * 1.06, 2 * pi * u[5], u[6], camera)
    elif view.front:
        _obstacle(picture, view, u[5:], foot)
    return _develop(picture, camera, view, rng)


def _cut(place: np.ndarray, view: View, lift: float) -> np.ndarray:
    """Crop the background from the place: uint8 (128, 64, 3)."""
    high = min(PLACE_HEIGHT, int(HEIGHT * 1.25 / view.zoom))
    wide = high // 2
    x = int((view.where % 1.0) * (PLACE_WIDTH - wide))
    y = int((0.35 + 0.65 * lift) * (PLACE_HEIGHT - high))
    return cv2.resize(place[y:y + high, x:x + wide], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def _put(picture: np.ndarray, person: Person, foot, size: float, turn: float, phase: float, camera: Camera) -> None:
    """Draw a person with a shadow into an image, uint8 (128, 64, 3), in place; `foot` is in pixels."""
    canvas = np.zeros((HEIGHT * _SUPER, WIDTH * _SUPER, 4), np.uint8)
    draw_figure(Pen(canvas, foot[0] * _SUPER, foot[1] * _SUPER, size * HEIGHT * _SUPER), person, turn, phase,
                camera.tilt)
    small = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    alpha = small[..., 3]
    ground = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(ground, (int(foot[0] - camera.light * 5), int(foot[1])), (int(size * 17) + 1, int(size * 4) + 1), 0, 0,
                360, 96, -1)
    shade = cv2.merge([255 - cv2.blur(ground, (7, 5))] * 3)
    base = cv2.multiply(picture, shade, scale=1 / 255)
    # The body is brighter on the side of the light and darker at its edges.
    soft = cv2.blur(alpha, (9, 9)).astype(np.float32)
    slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 255) * camera.light
    relief = 0.82 + 0.2 / 255 * soft + 0.20 * slope
    figure = small[..., :3] * relief[..., None]
    picture[:] = cv2.convertScaleAbs(base * ((255 - alpha) / np.float32(255))[..., None] + figure)


def _obstacle(picture: np.ndarray, view: View, u: np.ndarray, foot) -> None:
    """Draw a pole, bush or car in front of the legs or of one side of the person, in place."""
    x = view.front_x * WIDTH
    pen = Pen(np.zeros((HEIGHT * _SUPER, WIDTH * _SUPER, 4), np.uint8), x * _SUPER, HEIGHT * _SUPER, _SUPER)
    if view.front == "pole":
        wide, gray = 3 + 4 * u[0], 70 + 90 * u[1]
        pen.blob([(-wide, -4), (wide, -4), (wide, 140), (-wide, 140)], (gray, gray, gray * 1.04))
        pen.blob([(-wide, -4), (-wide * 0.3, -4), (-wide * 0.3, 140), (-wide, 140)], (gray * 0.75,) * 3)
    elif view.front == "bush":
        top = HEIGHT - foot[1] + 22 + 26 * u[0]
        for k in range(16):
            a, b = (k * 0.618 + u[1]) % 1.0, (k * 0.755 + u[2]) % 1.0
            pen.oval((a - 0.5) * 64, (top - 12) * b, 11 + 5 * a, 10 + 3 * b, (38 + 40 * b, 82 + 70 * b, 40 + 22 * a))
        for k in range(20):
            a, b = (k * 0.755 + u[2]) % 1.0, (k * 0.569 + u[0]) % 1.0
            pen.oval((a - 0.5) * 62, (top - 4) * b, 2.6, 1.8, (96 + 50 * a, 150 + 40 * a, 74))
    else:
        top, colour = HEIGHT - foot[1] + 16 + 20 * u[0], 60 + 170 * generator(int(u[1] * 1e6)).random(3)
        edge = -16.0 if view.front_x > 0.5 else 16.0
        far = -6 * edge
        pen.shape([(edge, -4), (edge, top * 0.55), (edge * 0.6, top * 0.7), (far, top), (far, -4)], tuple(colour))
        pen.shape([(edge * 0.1, top * 0.72), (far, top * 0.96), (far, top * 0.74)], (46, 56, 66))
        pen.oval(edge * 0.2, 1, 9, 9, (30, 30, 32))
        pen.oval(edge * 0.85, top * 0.48, 2.5, 2.5, (250, 240, 190))
    small = cv2.resize(pen.canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    keep = (255 - small[..., 3:]) / np.float32(255)
    picture[:] = cv2.convertScaleAbs(picture * keep + small[..., :3])


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Camera noise to crop from: float32 (192, 128, 3), a sum of noise by pixel and of blurred noise."""
    rng = generator("noise")
    fine = rng.standard_normal((192, 128, 3)).astype(np.float32)
    return 0.8 * fine + 1.2 * cv2.GaussianBlur(fine, (0, 0), 1.0)


def _develop(picture: np.ndarray, camera: Camera, view: View, rng: np.random.Generator) -> np.ndarray:
    """Apply the effects of the camera: uint8 (128, 64, 3) -> uint8 (128, 64, 3)."""
    u = rng.random(4)
    warm = np.array([1 + 0.16 * view.warmth, 1.0, 1 - 0.16 * view.warmth], np.float32)
    picture = cv2.transform(picture.astype(np.float32), camera.matrix * (warm * view.light)[:, None])
    if view.shadow:
        place = (_COLUMNS - WIDTH * u[0]) * (1.2 if u[1] < 0.5 else -1.2) + (_ROWS - HEIGHT / 2) * (u[2] - 0.5)
        picture *= (1 - view.shadow * np.clip(0.5 + place / 6, 0, 1))[..., None]
    if camera.blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), camera.blur)
    if view.smear > 1:
        picture = cv2.blur(picture, (view.smear + 1, 1))
    share = camera.resolution * (1 - 0.25 * camera.difficulty * u[3])
    if share < 0.95:
        low = cv2.resize(picture, (int(WIDTH * share), int(HEIGHT * share)), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(low, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    y, x = rng.integers(0, 64, 2)
    picture = picture + _noise()[y:y + HEIGHT, x:x + WIDTH] * camera.noise
    return cv2.LUT(np.clip(picture, 0, 255).astype(np.uint8), _gamma(camera.gamma))


_ROWS, _COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[:HEIGHT, :WIDTH])


@lru_cache(maxsize=64)
def _gamma(gamma: float) -> np.ndarray:
    return np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
