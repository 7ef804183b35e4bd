"""Faces of synthetic people, by which persons can be recognised in other clothes.

A head is a sphere. Points on it are (angle, v): angle 0 is the nose, v runs from -1 at the chin to 1 at the top.
Angles are in radians, colours are RGB from 0 to 255.
"""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np

from ..attributes.schema import MARKET1501
from .pen import EDGE, Pen
from .people import Person, blend, dim, pick

_PALE, _FLUSHED = (255, 240, 228), (226, 98, 84)
_LIPS = ((206, 40, 60), (236, 110, 150), (126, 40, 66))
_FRAMES = ((24, 22, 26), (150, 40, 36), (236, 232, 220))
_CHILDREN = ("young", "teenager")


def face_colour(person: Person) -> tuple:
    """Return the colour of the face, which is paler or redder than the other skin of the person."""
    tone = 2 * person.details["face_tone"] - 1
    return blend(person.skin, _FLUSHED if tone > 0 else _PALE, 0.45 * abs(tone))


def draw_face(pen: Pen, person: Person, x: float, y: float, r: float, turn: float) -> None:
    """Draw the details of a face and of the back of the head on a head with skin, hair and eyes.

    Args:
        pen: to draw with.
        person: details and labels.
        x: horizontal position of the head's centre.
        y: vertical position of the head's centre.
        r: radius of the head.
        turn: direction of the face in radians, -pi to pi; 0 faces the viewer.
    """
    face = _Face(pen, x, y, r, turn)
    child = MARKET1501.fields[MARKET1501.index("age")].values[person.labels["age"]] in _CHILDREN
    _crown(face, person, child)
    if cos(turn) > -0.6:
        _fringe(face, person)
        _brows(face, person)
        if person.labels["gender"] == 0 and not child:
            _beard(face, person)
        elif person.labels["gender"] == 1:
            _lips(face, person)
        _glasses(face, person)


class _Face:
    """Draws on the visible side of a head."""

    def __init__(self, pen: Pen, x: float, y: float, r: float, turn: float) -> None:
        self.pen, self.x, self.y, self.r, self.turn = pen, x, y, r, turn

    def seen(self, angle: float) -> float:
        return (angle + self.turn + pi) % (2 * pi) - pi

    def patch(self, angle: float, width: float, low: float, high: float, colour) -> None:
        """Fill the area from angle - width to angle + width between two heights."""
        left, right = max(self.seen(angle) - width, -EDGE), min(self.seen(angle) + width, EDGE)
        if right - left > 0.05:
            v = np.linspace(low, high, 5)
            half = 0.92 * self.r * np.sqrt(np.clip(1 - v**2, 0, 1))
            edges = [np.stack([self.x + half * sin(a), self.y + v * self.r], axis=1) for a in (left, right)]
            self.pen.shape(np.concatenate([edges[0], edges[1][::-1]]), colour)

    def oval(self, angle: float, v: float, width: float, height: float, colour) -> None:
        """Draw an oval on the head, narrower near the edge; width and height are shares of the radius."""
        seen = self.seen(angle)
        if abs(seen) < EDGE:
            self.pen.oval(self.x + 0.9 * self.r * sin(seen), self.y + v * self.r,
                          width * self.r * max(0.35, cos(seen)), height * self.r, colour)


def _crown(face: _Face, person: Person, child: bool) -> None:
    """Draw a bun in long hair, a bald spot at the back, a light streak over the middle, red sides, or nothing."""
    kind, long_hair = int(person.details["crown"] * 5), person.labels["hair"] == 1
    if kind == 1 and long_hair:
        shift = sin(face.seen(pi)) if abs(face.seen(pi)) < EDGE else np.sign(face.seen(pi)) * 0.98
        face.pen.oval(face.x + 1.05 * shift * face.r, face.y + 0.62 * face.r, 0.50 * face.r, 0.48 * face.r,
                      dim(person.hair, 0.8))
    elif kind == 1 and not child:
        face.patch(pi, 0.95, 0.05, 0.85, dim(person.skin, 0.92))
    elif kind == 2:
        for angle in (pi, 0.0):
            face.patch(angle, 0.32, 0.62 if angle == 0.0 else -0.30, 1.0, blend(person.hair, (236, 214, 160), 0.75))
    elif kind == 3:
        for angle in (pi / 2, -pi / 2):
            face.patch(angle, 0.55, 0.0, 0.75, blend(person.hair, (206, 84, 60), 0.65))


def _fringe(face: _Face, person: Person) -> None:
    """Draw hair over the whole forehead or one side of it, or a high forehead."""
    number, hair = person.details["fringe"], person.hair
    if number < 0.25:
        face.patch(0.0, 0.95, 0.12, 0.62, hair)
    elif number < 0.55:
        side = -1 if number < 0.40 else 1
        face.patch(0.55 * side, 0.62, -0.02, 0.62, hair)
    elif number < 0.80:
        face.patch(0.0, 0.75, 0.30, 0.80, face_colour(person))


def _brows(face: _Face, person: Person) -> None:
    """Draw thick eyebrows, or none."""
    if person.details["brows"] < 0.45:
        for side in (-1, 1):
            face.patch(0.42 * side, 0.27, 0.05, 0.20, dim(person.hair, 0.6))


def _beard(face: _Face, person: Person) -> None:
    """Draw a full beard, a goatee, a moustache, or none."""
    number, colour = person.details["beard"], dim(person.hair, 0.85)
    if number < 0.28:
        face.patch(0.0, 1.25, -0.99, -0.42, colour)
        face.patch(0.0, 0.24, -0.66, -0.56, (176, 92, 84))
    elif number < 0.46:
        face.patch(0.0, 0.60, -0.99, -0.62, colour)
    elif number < 0.64:
        face.patch(0.0, 0.50, -0.54, -0.36, colour)


def _lips(face: _Face, person: Person) -> None:
    """Draw red, pink or dark lips, or none."""
    number = person.details["lips"]
    if number < 0.7:
        face.patch(0.0, 0.36, -0.70, -0.50, pick(_LIPS, number / 0.7))


def _glasses(face: _Face, person: Person) -> None:
    """Draw sunglasses, or glasses with a coloured frame; half of the people wear none."""
    number, skin = person.details["glasses"], face_colour(person)
    if number >= 0.5:
        return
    colour = _FRAMES[0] if number < 0.15 else pick(_FRAMES, (number - 0.15) / 0.35)
    for side in (-1, 1):
        face.patch(side, 0.55, -0.12, 0.00, colour)
        face.oval(0.42 * side, -0.12, 0.35, 0.27, colour)
        if number >= 0.15:
            face.oval(0.42 * side, -0.12, 0.20, 0.14, blend(skin, (255, 255, 255), 0.5))
            face.oval(0.42 * side, -0.12, 0.08, 0.10, (44, 34, 32))
    face.patch(0.0, 0.2, -0.14, -0.02, colour)
