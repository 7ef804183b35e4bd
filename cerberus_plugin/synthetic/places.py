"""Six synthetic places as wide images; the backgrounds of person images are crops of them."""

from __future__ import annotations

import cv2
import numpy as np

PLACE_HEIGHT, PLACE_WIDTH = 192, 720
_SUPER = 2  # drawn at twice the size, then downsampled


def draw_place(name: str, horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a wide image of a place.

    Args:
        name: plaza, shop, park, street, hall or wall.
        horizon: position of the horizon from the top, as a share of the height.
        rng: random generator.

    Returns:
        uint8 (192, 720, 3).
    """
    high, wide, s = PLACE_HEIGHT, PLACE_WIDTH, _SUPER
    image = np.zeros((high * s, wide * s, 3), np.uint8)
    _Scenery(image, rng, horizon)(name)
    image = cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA).astype(np.float32)
    grain = rng.standard_normal((high, wide, 1)).astype(np.float32)
    clouds = cv2.resize(rng.standard_normal((12, 40)).astype(np.float32), (wide, high), interpolation=cv2.INTER_CUBIC)
    image *= 1 + 0.03 * cv2.GaussianBlur(grain, (0, 0), 0.8)[..., None] + 0.07 * clouds[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _muted(rng: np.random.Generator, low: float = 50, high: float = 230, colourful: float = 0.5) -> np.ndarray:
    """Return a random colour, less saturated than clothes."""
    colour = rng.uniform(low, high, 3)
    return colourful * colour + (1 - colourful) * colour.mean()


class _Scenery:
    """Draws a place on an image, uint8 (H, W, 3); coordinates are divided by the height, so x is from 0 to W / H."""

    def __init__(self, image: np.ndarray, rng: np.random.Generator, horizon: float) -> None:
        self.image, self.rng, self.horizon = image, rng, horizon
        self.h, self.end = image.shape[0], image.shape[1] / image.shape[0]

    def __call__(self, name: str) -> None:
        getattr(self, "_" + name)()

    def box(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        a, b = (int(x0 * self.h), int(y0 * self.h)), (int(x1 * self.h), int(y1 * self.h))
        cv2.rectangle(self.image, a, b, tuple(map(float, colour)), -1)

    def shape(self, points, colour) -> None:
        cv2.fillPoly(self.image, [np.int32(np.array(points) * self.h)], tuple(map(float, colour)), cv2.LINE_AA)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour, width: float = 0.006) -> None:
        a, b = (int(x0 * self.h), int(y0 * self.h)), (int(x1 * self.h), int(y1 * self.h))
        cv2.line(self.image, a, b, tuple(map(float, colour)), max(1, int(width * self.h)), cv2.LINE_AA)

    def disc(self, x: float, y: float, rx: float, ry: float, colour) -> None:
        cv2.ellipse(self.image, (int(x * self.h), int(y * self.h)), (int(rx * self.h), int(ry * self.h)), 0, 0, 360,
                    tuple(map(float, colour)), -1, cv2.LINE_AA)

    def near(self, colour, amount: float = 14.0):
        return np.clip(np.array(colour) + self.rng.uniform(-amount, amount), 0, 255)

    def ramp(self, y0: float, y1: float, top, bottom) -> None:
        a, b = int(y0 * self.h), int(y1 * self.h)
        share = np.linspace(0, 1, b - a)[:, None, None]
        self.image[a:b] = np.array(top) * (1 - share) + np.array(bottom) * share

    def tiles(self, colour, rows: int, slant: float, width: float = 0.004) -> None:
        """Draw the joints of a paved floor in perspective."""
        for k in range(1, rows + 1):
            y = self.horizon + (1 - self.horizon) * (k / rows) ** 1.6
            self.line(0, y, self.end, y, colour, width)
        for x in np.arange(-1.5, self.end + 1.5, 0.22):
            self.line(x, self.horizon, x + slant + 0.12 * (x - self.end / 2), 1.0, colour, width)

    def tree(self, x: float, base: float, tall: float, green) -> None:
        self.box(x - 0.03 * tall, base - tall * 0.6, x + 0.03 * tall, base, (96, 72, 52))
        for _ in range(14):
            a, b = self.rng.uniform(-1, 1, 2)
            self.disc(x + 0.3 * tall * a, base - tall * (0.75 + 0.22 * b), 0.16 * tall, 0.14 * tall,
                      self.near(green, 24))

    def car(self, x: float, base: float, size: float) -> None:
        body = _muted(self.rng)
        self.shape([(x, base), (x, base - 0.45 * size), (x + 0.4 * size, base - 0.5 * size),
                    (x + 0.7 * size, base - 0.9 * size), (x + 1.6 * size, base - 0.9 * size),
                    (x + 2.0 * size, base - 0.5 * size), (x + 2.3 * size, base - 0.42 * size), (x + 2.3 * size, base)],
                   body)
        self.shape([(x + 0.55 * size, base - 0.52 * size), (x + 0.76 * size, base - 0.82 * size),
                    (x + 1.55 * size, base - 0.82 * size), (x + 1.85 * size, base - 0.52 * size)], (62, 76, 88))
        for wheel in (0.5, 1.8):
            self.disc(x + wheel * size, base, 0.22 * size, 0.22 * size, (34, 34, 36))
            self.disc(x + wheel * size, base, 0.10 * size, 0.10 * size, (150, 150, 154))

    def windows(self, top: float, bottom: float, step: float, colour) -> None:
        for x in np.arange(0.04, self.end, step):
            for y in np.arange(top, bottom, 0.15):
                self.box(x, y, x + step * 0.55, y + 0.09, self.near(colour, 26))

    def _plaza(self) -> None:
        self.ramp(0, self.horizon, (196, 186, 172), (178, 166, 150))
        self.windows(0.02, self.horizon - 0.12, 0.17, (104, 124, 142))
        self.box(0, self.horizon - 0.04, self.end, self.horizon, (128, 118, 108))
        self.ramp(self.horizon, 1, (176, 174, 168), (206, 202, 194))
        self.tiles((150, 146, 140), 9, 0.3)
        for x in self.rng.uniform(0, self.end, 6):
            self.box(x, self.horizon - 0.02, x + 0.18, self.horizon + 0.07, (122, 112, 100))
            self.tree(x + 0.09, self.horizon + 0.01, 0.32, (86, 132, 74))

    def _shop(self) -> None:
        self.ramp(0, self.horizon, (226, 214, 190), (206, 190, 160))
        x = 0.0
        while x < self.end:
            wide = self.rng.uniform(0.22, 0.42)
            self.box(x + 0.01, 0.12, x + wide - 0.02, self.horizon, _muted(self.rng, 80, 180))
            for _ in range(9):
                a, b = self.rng.random(2)
                left, top = x + 0.02 + a * (wide - 0.1), 0.14 + b * (self.horizon - 0.22)
                self.box(left, top, left + 0.06, top + 0.05, _muted(self.rng, 60, 255, 0.7))
            self.box(x, 0.0, x + wide - 0.01, 0.10, _muted(self.rng))
            self.line(x, 0.1, x, self.horizon, (90, 84, 76), 0.014)
            x += wide
        self.ramp(self.horizon, 1, (186, 176, 160), (214, 206, 190))
        self.tiles((166, 156, 142), 7, -0.2, 0.003)

    def _park(self) -> None:
        self.ramp(0, self.horizon, (206, 222, 232), (190, 206, 190))
        for x in np.arange(0, self.end, 0.13):
            self.disc(x, self.horizon - 0.04, 0.12, self.rng.uniform(0.07, 0.16), self.near((94, 132, 84), 22))
        self.ramp(self.horizon, 1, (118, 156, 88), (98, 138, 74))
        for _ in range(700):
            x, y = self.rng.uniform(0, self.end), self.rng.uniform(self.horizon, 1)
            self.line(x, y, x + 0.004, y - 0.02 * y, self.near((106, 146, 80), 30), 0.003)
        for x in np.arange(0.2, self.end, 1.2):
            self.shape([(x, self.horizon), (x + 0.1, self.horizon), (x + 0.75, 1), (x - 0.15, 1)], (198, 184, 156))
        for x in self.rng.uniform(0, self.end, 9):
            self.tree(x, self.horizon + 0.08, self.rng.uniform(0.34, 0.5), (74, 124, 66))

    def _street(self) -> None:
        self.ramp(0, self.horizon, (150, 158, 170), (166, 170, 178))
        self.windows(0.01, self.horizon - 0.16, 0.12, (88, 100, 118))
        self.ramp(self.horizon, 1, (112, 114, 120), (128, 130, 136))
        self.box(0, self.horizon, self.end, self.horizon + 0.06, (164, 164, 166))
        for x in np.arange(0, self.end, 0.4):
            self.shape([(x, 0.66), (x + 0.2, 0.66), (x + 0.22, 0.69), (x + 0.01, 0.69)], (226, 226, 220))
        for x in np.arange(0.9, self.end, 1.5):
            for k in range(5):
                self.shape([(x + 0.09 * k, 0.74), (x + 0.09 * k + 0.05, 0.74), (x + 0.11 * k + 0.06, 1),
                            (x + 0.11 * k, 1)], (218, 218, 214))
        x = 0.05
        while x < self.end:
            self.car(x, self.horizon + 0.12, self.rng.uniform(0.14, 0.19))
            x += self.rng.uniform(0.44, 0.8)

    def _hall(self) -> None:
        self.ramp(0, self.horizon, (222, 212, 206), (196, 184, 180))
        for x in np.arange(0.0, self.end, 0.5):
            self.box(x, 0.0, x + 0.09, self.horizon + 0.02, self.near((150, 140, 140), 10))
            self.box(x + 0.15, 0.10, x + 0.41, self.horizon - 0.03, self.near((122, 92, 74), 18))
            self.box(x + 0.18, 0.14, x + 0.27, self.horizon - 0.12, (158, 176, 186))
            self.disc(x + 0.28, 0.03, 0.12, 0.014, (255, 252, 236))
        self.ramp(self.horizon, 1, (158, 142, 134), (190, 176, 166))
        for _ in range(60):
            x, y = self.rng.uniform(0, self.end), self.rng.uniform(self.horizon, 1)
            self.disc(x, y, 0.07 * y, 0.012 * y, self.near((184, 172, 164), 14))
        self.tiles((138, 122, 116), 6, 0.5, 0.003)

    def _wall(self) -> None:
        self.ramp(0, self.horizon + 0.12, (150, 104, 86), (134, 92, 78))
        for row, y in enumerate(np.arange(0, self.horizon + 0.12, 0.035)):
            self.line(0, y, self.end, y, (176, 150, 134), 0.004)
            for x in np.arange(0.05 * (row % 2), self.end, 0.1):
                self.line(x, y, x, y + 0.035, (176, 150, 134), 0.004)
        self.ramp(self.horizon + 0.12, 1, (122, 122, 122), (150, 150, 148))
        self.box(0, self.horizon + 0.11, self.end, self.horizon + 0.13, (92, 90, 88))
        for x in self.rng.uniform(0, self.end, 12):
            y, r, colour = self.horizon + 0.22, 0.06, _muted(self.rng)
            for wheel in (x, x + 0.17):
                cv2.circle(self.image, (int(wheel * self.h), int(y * self.h)), int(r * self.h), (44, 44, 46), 3,
                           cv2.LINE_AA)
            for a, b, c, d in ((0, 0, 0.05, -0.08), (0.05, -0.08, 0.13, -0.08), (0.13, -0.08, 0.17, 0),
                               (0.05, -0.08, 0.09, 0), (0, 0, 0.09, 0), (0.09, 0, 0.13, -0.08)):
                self.line(x + a, y + b, x + c, y + d, colour, 0.008)
        for x in self.rng.uniform(0, self.end, 5):
            self.box(x, 0.06, x + 0.12, 0.2, _muted(self.rng, 150, 250))
