"""Drawing in body units: polygons, ovals and limbs on a canvas, and patterns on round body parts.

The height of a person is 1; x points to the right, y up. Colours are RGB from 0 to 255.
"""

from __future__ import annotations

from math import cos, hypot, pi, sin

import cv2
import numpy as np

_TURN = np.linspace(0.0, 2.0 * pi, 25)[:-1]
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)  # (24, 2)
_HALF = np.linspace(-pi / 2, pi / 2, 7)
_CAP = np.stack([np.cos(_HALF), np.sin(_HALF)], axis=1)  # (7, 2), round end of a limb in direction +x
_BITS = 4  # fractional bits of the coordinates for cv2: 1/16 pixel
EDGE = 0.5 * pi - 0.02  # angle of the visible edge of a round body part


class Pen:
    """Draws in body units on an RGBA canvas with premultiplied alpha.

    Args:
        canvas: uint8 (H, W, 4), drawn on in place.
        x: horizontal position of the origin in pixels.
        y: vertical position of the origin in pixels.
        scale: pixels per body unit.
    """

    def __init__(self, canvas: np.ndarray, x: float, y: float, scale: float) -> None:
        self.canvas, self.scale = canvas, scale
        self._factor = np.array([scale, -scale]) * 2**_BITS
        self._origin = np.array([x, y]) * 2**_BITS + 0.5

    def _points(self, points) -> np.ndarray:
        return (np.asarray(points) * self._factor + self._origin).astype(np.int32)

    def shape(self, points, colour) -> None:
        """Fill a polygon, float (N, 2)."""
        cv2.fillPoly(self.canvas, [self._points(points)], (*colour, 255), cv2.LINE_AA, _BITS)

    def blob(self, points, colour) -> None:
        """Fill a convex polygon, float (N, 2)."""
        cv2.fillConvexPoly(self.canvas, self._points(points), (*colour, 255), cv2.LINE_AA, _BITS)

    def oval(self, x: float, y: float, rx: float, ry: float, colour) -> None:
        """Fill an ellipse with centre (x, y) and radii rx and ry."""
        self.blob(CIRCLE * (rx, ry) + (x, y), colour)

    def limb(self, a, b, ra: float, rb: float, colour) -> None:
        """Fill a bar with round ends from a to b, with radius ra at a and rb at b."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = hypot(dx, dy) or 1e-6
        c, s = dx / length, dy / length
        turn = np.array([[c, s], [-s, c]])
        self.blob(np.concatenate([_CAP @ turn * rb + b[:2], -_CAP @ turn * ra + a[:2]]), colour)

    def line(self, points, colour, width: float) -> None:
        """Draw a line through points, float (N, 2), `width` in body units."""
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, [self._points(points)], False, (*colour, 255), thickness, cv2.LINE_AA, _BITS)


class Round:
    """A round body part (trunk, skirt), given by horizontal sections from top to bottom.

    Points on it are (angle, t): angle 0 is the front, pi the back; t runs from 0 at the top to 1 at the bottom.

    Args:
        ts: t of each section.
        centres: float (N, 2), centre of each section on the canvas.
        front: float (N,), half the width of each section seen from the front.
        side: float (N,), half the width of each section seen from the side.
        turn: direction of the body in radians; 0 faces the viewer.
    """

    def __init__(self, ts, centres: np.ndarray, front: np.ndarray, side: np.ndarray, turn: float) -> None:
        self.ts, self.centres, self.turn = ts, centres, turn
        self.half = np.sqrt((front * cos(turn)) ** 2 + (side * sin(turn)) ** 2)

    def outline(self) -> np.ndarray:
        """Return the visible outline, a polygon float (2 N, 2)."""
        offset = np.stack([self.half, np.zeros_like(self.half)], axis=1)
        return np.concatenate([self.centres - offset, (self.centres + offset)[::-1]])

    def place(self, angles, ts) -> np.ndarray:
        """Return points on the canvas, float (..., 2), for angles relative to the viewer (angle + turn)."""
        x, y = (np.interp(ts, self.ts, self.centres[:, i]) for i in (0, 1))
        return np.stack([x + np.interp(ts, self.ts, self.half) * np.sin(angles), y], axis=-1)

    def _seen(self, angle: float) -> float:
        return (angle + self.turn + pi) % (2 * pi) - pi

    def patch(self, pen: Pen, angle: float, width: float, t0: float, t1: float, colour) -> None:
        """Fill the area from angle - width to angle + width between t0 and t1, as far as it is visible."""
        middle = self._seen(angle)
        low, high = max(middle - width, -EDGE), min(middle + width, EDGE)
        if high - low < 0.08:
            return
        ts = np.linspace(t0, t1, 4)
        pen.shape(np.concatenate([self.place(low, ts), self.place(high, ts)[::-1]]), colour)

    def stroke(self, pen: Pen, angles, ts, colour, width: float) -> None:
        """Draw a line on the body through (angles, ts), as far as it is visible."""
        angles = np.linspace(angles[0], angles[-1], 9) if len(angles) == 2 else np.asarray(angles)
        ts = np.linspace(ts[0], ts[-1], len(angles)) if len(ts) == 2 else np.asarray(ts)
        seen = (angles + self.turn + pi) % (2 * pi) - pi
        keep = np.abs(seen) <= EDGE
        if keep.sum() > 1:
            pen.line(self.place(seen[keep], ts[keep]), colour, width)
