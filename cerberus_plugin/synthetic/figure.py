"""Drawing of a person from any side.

The body is a small 3-D skeleton seen by an almost level camera, so that one description is used for all views: a
backpack is a box on the back from behind, a bump from the side and two straps from the front.
Units: the height of a person is 1, the feet are at 0; x points to the side, y up, z forward. Colours are RGB from 0 to
255.
"""

from __future__ import annotations

from math import cos, hypot, pi, sin

import cv2
import numpy as np

from ..attributes.schema import MARKET1501
from .faces import draw_face, face_colour
from .pen import CIRCLE, EDGE, Pen, Round
from .people import ACCENTS, Person, blend, dim, pick

# By age: head radius, heights of shoulder and hip, width factor of the body, body height, forward bend (radians).
AGES = {
    "young": (0.108, 0.715, 0.415, 1.04, 0.84, 0.0),
    "teenager": (0.084, 0.785, 0.480, 0.84, 0.97, 0.0),
    "adult": (0.070, 0.822, 0.490, 1.02, 1.0, 0.0),
    "old": (0.074, 0.812, 0.475, 1.06, 0.97, 0.36),
}


def draw_figure(pen: Pen, person: Person, turn: float, phase: float, tilt: float = 0.1) -> None:
    """Draw a walking person.

    Args:
        pen: to draw with; its origin is the point between the feet.
        person: looks of the person.
        turn: walking direction in radians: 0 faces the viewer, pi/2 walks to the right, pi shows the back.
        phase: position in the walking cycle, 0 to 1.
        tilt: downward tilt of the camera in radians.
    """
    _Figure(pen, person, turn, phase, tilt).draw()


class _Figure:
    def __init__(self, pen: Pen, person: Person, turn: float, phase: float, tilt: float) -> None:
        labels, self.pen, self.person, self.turn, self.tilt = person.labels, pen, person, turn, tilt
        self.labels, self.details = labels, person.details
        age = MARKET1501.fields[MARKET1501.index("age")].values[labels["age"]]
        self.head, self.shoulder, self.hip, width, tall, bend = AGES[age]
        self.female = labels["gender"] == 1
        self.size = tall * (1 + 0.035 * person.centred("height"))
        self.width = width * (1 + 0.13 * person.centred("width"))
        self.thick = (0.85 if age == "teenager" else 1.0) * (1 + 0.2 * person.centred("limbs"))
        self.bend = bend * (1 + 0.25 * person.centred("bend")) + 0.05 * max(0.0, person.centred("bend"))
        self.stride = (0.26 if age == "old" else 0.44) * (1 + 0.3 * person.centred("stride"))
        self.swing = (0.20 if age == "old" else 0.40) * (1 + 0.5 * person.centred("swing"))
        self.step = sin(2 * pi * phase)
        self.lift = cos(2 * pi * phase)
        self.face, self.aside = cos(turn), sin(turn)
        self.long_sleeve, self.long_lower = labels["up"] == 0, labels["down"] == 0
        self.dress = labels["clothes"] == 0
        self.bag_colour = person.bag
        self.bag_side = 1 if self.details["side"] < 0.5 else -1
        neck_z = sin(self.bend) * (self.shoulder - self.hip)
        self.neck = (0.0, self.hip + cos(self.bend) * (self.shoulder - self.hip) + 0.02, neck_z)

    def at(self, point) -> tuple[float, float, float]:
        """Project a body point (x, y, z): right, up, and depth towards the viewer."""
        x, y, z = point
        near = z * self.face - x * self.aside
        return ((x * self.face + z * self.aside) * self.size, (y - near * self.tilt) * self.size, near)

    def draw(self) -> None:
        legs = sorted((self.leg(side) for side in (-1, 1)), key=lambda leg: leg[0])
        arms = sorted((self.arm(side) for side in (-1, 1)), key=lambda arm: arm[0])
        from_behind = self.face < 0.05
        if self.labels["backpack"] and not from_behind:
            self.backpack()
        if self.details["cane"] < 0.5 and self.labels["age"] == 3:
            self.cane()
        far, near = [arm for arm in arms if arm[0] < -0.05], [arm for arm in arms if arm[0] >= -0.05]
        for arm in far:
            self.draw_arm(*arm[1:], 0.78)
        self.draw_leg(*legs[0][1:], 0.80)
        self.draw_leg(*legs[1][1:], 1.0)
        if self.dress:
            self.skirt()
        self.pen.limb(self.at(self.neck), self.at((0, self.neck[1] + 0.05, self.neck[2] + 0.01)),
                      0.030 * self.width * self.size, 0.028 * self.size, dim(self.person.skin, 0.86))
        trunk = self.trunk()
        if self.labels["backpack"]:
            for side in (-1, 1):
                trunk.stroke(self.pen, (side * 0.62, side * 0.5, side * 0.95), (0.02, 0.3, 0.72),
                             dim(self.bag_colour, 0.75), 0.020)
            if from_behind:
                self.backpack()
        if self.labels["bag"]:
            self.messenger(trunk)
        for arm in near:
            self.draw_arm(*arm[1:], 0.93)
        self.draw_head()

    def trunk(self) -> Round:
        p, pen, w = self.person, self.pen, self.width * self.size
        ts = np.array([0.0, 0.05, 0.14, 0.40, 0.72, 1.0])
        if self.female:
            front, side = (0.042, 0.080, 0.100, 0.093, 0.076, 0.108), (0.04, 0.05, 0.062, 0.088, 0.062, 0.088)
        else:
            front, side = (0.046, 0.098, 0.122, 0.116, 0.100, 0.101), (0.04, 0.05, 0.066, 0.082, 0.076, 0.080)
        hem = (0.0, self.hip - 0.035, 0.0)
        bow = ts * (1 - ts) * 4 * -0.28 * self.bend * (self.shoulder - self.hip)  # curvature of a bent back
        centres = np.array([self.at((0, self.neck[1] + (hem[1] - self.neck[1]) * t, self.neck[2] * (1 - t) + z))[:2]
                            for t, z in zip(ts, bow)])
        trunk = Round(ts, centres, np.array(front) * w, np.array(side) * w, self.turn)
        pen.shape(trunk.outline(), p.upper)
        if p.upper_second != p.upper:
            self.pattern(trunk, p.upper_second, self.details["pattern"])
        else:
            self.prints(trunk)
        if self.details["collar"] < (0.8 if self.female else 0.3):
            trunk.patch(pen, 0.0, 0.55, 0.0, 0.10 if self.female else 0.05, dim(p.skin, 0.95))
        elif self.details["collar"] < (0.9 if self.female else 0.7):
            trunk.patch(pen, 0.0, 1.5, 0.0, 0.06, dim(p.upper, 0.7))
        if p.has("belt", 0.35):
            colour = blend(p.lower, (60, 45, 36), p.spread)
            trunk.patch(pen, 0.0, pi, 0.94, 1.0, colour)
        return trunk

    def pattern(self, part: Round, colour, number: float) -> None:
        """Draw horizontal stripes, vertical stripes or checks in the second colour around the whole body part."""
        if number < 0.66:
            for t in (0.16, 0.40, 0.64, 0.88):
                part.patch(self.pen, -self.turn, pi / 2, t, t + 0.11, colour)
        if number >= 0.33:
            for angle in np.arange(6) * pi / 3:
                part.patch(self.pen, angle, 0.16, 0.10, 0.98, colour)

    def prints(self, trunk: Round) -> None:
        """Draw prints on chest and back, if the person has them; they are paler for a smaller spread."""
        p, pen, d = self.person, self.pen, self.details
        colour = blend(p.upper, pick(ACCENTS, d["print_colour"]), 0.25 + 0.75 * p.spread)
        kind = int(d["print"] / p.spread * 8.4) if p.has("print", 1.0) else 0  # 0 and 8: no print
        t = 0.26 + 0.14 * d["print_place"]
        if kind == 1:
            trunk.patch(pen, 0.0, 0.42, t, t + 0.26, colour)
        elif kind == 2:
            trunk.patch(pen, -self.turn, pi / 2, t, t + 0.15, colour)
        elif kind == 3:
            for start in (0.22, 0.42, 0.62):
                trunk.patch(pen, -self.turn, pi / 2, start, start + 0.07, colour)
        elif kind == 4:
            trunk.patch(pen, 0.0, 0.20, 0.02, 1.0, colour)
        elif kind == 5:
            trunk.patch(pen, 0.5 if d["print_place"] < 0.5 else -0.5, 0.22, 0.24, 0.38, colour)
        elif kind == 6:
            for side in (-1, 1):
                trunk.patch(pen, side * pi / 2, 0.30, 0.12, 1.0, colour)
        elif kind == 7:
            trunk.patch(pen, -self.turn, pi / 2, 0.68, 1.0, colour)
        if p.has("back_print", 0.4):
            trunk.patch(pen, pi, 0.5, 0.2, 0.2 + 0.5 * d["back_print"] + 0.1, colour)

    def skirt(self) -> None:
        p, w = self.person, self.width * self.size
        bottom = 0.10 if self.long_lower else self.hip - 0.19
        reach = abs(self.step) * self.stride * (self.hip - bottom) * 0.75
        ts = np.array([0.0, 0.25, 1.0])
        top = self.hip + 0.06
        centres = np.array([self.at((0, top + (bottom - top) * t, 0))[:2] for t in ts])
        flare = 0.125 if self.long_lower else 0.145
        front, side = np.array([0.084, 0.112, flare]) * w, np.array([0.07, 0.095, flare * 0.85]) * w
        side[2] += 0.6 * reach * self.size
        part = Round(ts, centres, front, side, self.turn)
        self.pen.shape(part.outline(), p.lower)
        if p.lower_second != p.lower:
            self.pattern(part, p.lower_second, self.details["pattern"])
        else:
            for angle in np.arange(8) * pi / 4 + 0.3:
                part.stroke(self.pen, (angle, angle), (0.3, 1.0), dim(p.lower, 0.82), 0.008)
        if p.has("stripe", 0.4):
            colour = blend(p.lower, pick(ACCENTS, self.details["print_colour"]), p.spread)
            part.patch(self.pen, -self.turn, pi / 2, 0.86, 0.94, colour)

    def leg(self, side: int) -> tuple:
        """Return depth, side, and the projected hip, knee, ankle and toe; the swinging leg bends at the knee."""
        angle = side * self.step * self.stride
        bend = 0.10 + 0.75 * self.stride * max(0.0, side * self.lift) * 1.6
        x, half = side * 0.050 * self.width, (self.hip - 0.035) / 2
        knee = (x, self.hip - half * cos(angle), half * sin(angle))
        ankle = (x * 0.9, knee[1] - half * cos(angle - bend), knee[2] + half * sin(angle - bend))
        foot = angle - 0.5 * bend
        toe = (x * 1.15, ankle[1] - 0.022 + 0.07 * sin(max(-0.5, foot)), ankle[2] + 0.085)
        knee_seen = self.at(knee)
        return knee_seen[2], side, self.at((x, self.hip, 0)), knee_seen, self.at(ankle), self.at(toe)

    def draw_leg(self, side: int, hip, knee, ankle, toe, light: float) -> None:
        p, pen, thick, d = self.person, self.pen, self.thick * self.size, self.details
        skin, lower = dim(p.skin, light), dim(p.lower, light)
        trousers = not self.dress
        pen.limb(ankle, toe, 0.026 * self.size, 0.018 * self.size, dim(p.shoes, light))
        if trousers and self.long_lower:
            pen.limb(knee, ankle, 0.040 * thick, 0.033 * thick, lower)
            pen.limb(hip, knee, 0.058 * thick, 0.041 * thick, lower)
            seam = 0.030 * thick * side * (1 if self.face >= 0 else -1) * abs(self.face)
            if p.has("stripe", 0.3):
                colour = dim(blend(p.lower, pick(ACCENTS, d["print_colour"]), 0.2 + 0.8 * p.spread), light)
                pen.line([(q[0] + seam, q[1]) for q in (hip, knee, ankle)], colour, 0.012)
        else:
            pen.limb(knee, ankle, 0.034 * thick, 0.024 * thick, skin)
            pen.limb(hip, knee, 0.050 * thick, 0.036 * thick, skin)
            if p.has("socks", 0.35):
                pen.limb(blend(ankle[:2], knee[:2], 0.45), ankle, 0.031 * thick, 0.027 * thick,
                         dim(pick(ACCENTS, d["socks"] / 0.35), light))
            if trousers:
                pen.limb(hip, blend(hip[:2], knee[:2], 0.74), 0.060 * thick, 0.056 * thick, lower)
        if trousers and p.lower_second != p.lower:
            second, end = dim(p.lower_second, light), ankle if self.long_lower else blend(hip[:2], knee[:2], 0.8)
            for share in (0.25, 0.5, 0.75):
                mid = blend(hip[:2], end[:2], share)
                pen.line([(mid[0] - 0.04 * thick, mid[1]), (mid[0] + 0.04 * thick, mid[1])], second, 0.02)

    def arm(self, side: int) -> tuple:
        """Return depth, side, and the projected shoulder, elbow and hand; arms swing opposite to the legs."""
        carries = self.labels["handbag"] and side == self.bag_side
        angle = -side * self.step * self.swing * (0.3 if carries else 1.0) + 0.4 * self.bend
        wide = (0.094 if self.female else 0.110) * self.width
        x, y, z = side * wide, self.neck[1] - 0.055, self.neck[2]
        upper = 0.50 * (self.shoulder - self.hip)
        elbow = (x + side * 0.022, y - upper * cos(angle), z + upper * sin(angle))
        fore = angle + 0.25 + 0.25 * abs(self.step)
        hand = (x + side * 0.026, elbow[1] - 0.95 * upper * cos(fore), elbow[2] + 0.95 * upper * sin(fore))
        elbow_seen = self.at(elbow)
        return elbow_seen[2], side, self.at((x, y, z)), elbow_seen, self.at(hand)

    def draw_arm(self, side: int, shoulder, elbow, hand, light: float) -> None:
        p, pen, thick = self.person, self.pen, self.thick * self.size
        skin, upper = dim(p.skin, light), dim(p.upper, light)
        if self.labels["handbag"] and side == self.bag_side:
            self.handbag(hand, light)
        pen.limb(elbow, hand, 0.024 * thick, 0.018 * thick, skin)
        pen.oval(hand[0], hand[1], 0.021 * thick, 0.021 * thick, skin)
        if self.long_sleeve:
            pen.limb(elbow, blend(elbow[:2], hand[:2], 0.88), 0.031 * thick, 0.026 * thick, upper)
            end = elbow
        else:
            pen.limb(shoulder, elbow, 0.030 * thick, 0.025 * thick, skin)
            end = blend(shoulder[:2], elbow[:2], 0.62)
        pen.limb(shoulder, end, 0.038 * thick, 0.033 * thick, upper)
        if p.has("trim", 0.3) or p.upper_second != p.upper:
            end = blend(shoulder[:2], elbow[:2], 0.6)
            second = p.upper_second if p.upper_second != p.upper else pick(ACCENTS, self.details["print_colour"])
            pen.limb(blend(shoulder[:2], elbow[:2], 0.48), end, 0.034 * thick, 0.033 * thick,
                     dim(blend(p.upper, second, 0.3 + 0.7 * p.spread), light))

    def handbag(self, hand, light: float) -> None:
        colour, s = dim(self.bag_colour, light), self.size
        wide = (0.075 + 0.02 * self.details["bag_shape"]) * (0.6 + 0.4 * abs(self.aside)) * s
        x, y = hand[0], hand[1] - 0.055 * s
        self.pen.line([(x - wide * 0.5, y), (x - wide * 0.3, y + 0.05 * s), (x + wide * 0.3, y + 0.05 * s),
                       (x + wide * 0.5, y)], dim(colour, 0.7), 0.012)
        self.pen.blob([(x - wide * 0.75, y), (x + wide * 0.75, y), (x + wide, y - 0.10 * s), (x - wide, y - 0.10 * s)],
                      colour)
        self.pen.line([(x - wide * 0.8, y - 0.03 * s), (x + wide * 0.8, y - 0.03 * s)], dim(colour, 0.65), 0.010)

    def backpack(self) -> None:
        d, s, length = self.details, self.size, self.shoulder - self.hip
        half = 0.088 * self.width * (0.9 + 0.25 * d["bag_shape"])
        top, bottom = self.neck[1] - 0.035, self.neck[1] - (0.78 + 0.15 * d["bag_shape"]) * length
        x, _, near = self.at((0, 0, self.neck[2] * 0.6 - 0.118))
        y0, y1 = (y * s - near * self.tilt * s for y in (top, bottom))
        w = hypot(half * self.face, 0.062 * self.aside) * s
        corners = [(x + c * (w - 0.03 * s), y) for c, y in ((1, y0 - 0.03 * s), (-1, y0 - 0.03 * s))]
        for c, y in ((-1, y1 + 0.02 * s), (1, y1 + 0.02 * s)):
            corners.append((x + c * (w - 0.02 * s), y))
        centre = np.array(corners)
        colour = self.bag_colour if self.face < 0.3 else dim(self.bag_colour, 0.8)
        hull = cv2.convexHull(np.concatenate([CIRCLE * 0.03 * s + c for c in centre]).astype(np.float32))
        self.pen.blob(hull[:, 0], colour)
        if self.face < 0.2:
            low = y1 + 0.42 * (y0 - y1)
            shift = -self.aside * 0.02 * s
            self.pen.blob([(x + shift - w * 0.72, low), (x + shift + w * 0.72, low),
                           (x + shift + w * 0.66, y1 + 0.015 * s), (x + shift - w * 0.66, y1 + 0.015 * s)],
                          dim(colour, 0.72))
            self.pen.line([(x - w * 0.8, y0 - 0.06 * s), (x + w * 0.8, y0 - 0.06 * s)], dim(colour, 1.45), 0.010)

    def messenger(self, trunk: Round) -> None:
        """Draw a bag at one hip, with a strap over the other shoulder."""
        side, s, colour = self.bag_side, self.size, self.bag_colour
        strap = dim(colour, 0.72)
        front = np.linspace(-side * 0.75, side * 1.35, 9)
        trunk.stroke(self.pen, front, np.linspace(0.02, 0.98, 9), strap, 0.022)
        trunk.stroke(self.pen, pi - front, np.linspace(0.02, 0.98, 9), strap, 0.022)
        x, y, near = self.at((side * 0.125 * self.width, self.hip - 0.02, -0.01))
        if near < -0.07:
            return  # hidden by the hip
        w = hypot(0.055 * self.face, 0.095 * self.aside) * s
        y0, y1 = y + 0.055 * s, y - (0.06 + 0.03 * self.details["bag_shape"]) * s
        self.pen.blob([(x - w, y0), (x + w, y0), (x + w * 1.05, y1), (x - w * 1.05, y1)], colour)
        self.pen.blob([(x - w, y0), (x + w, y0), (x + w * 0.9, y0 - 0.06 * s), (x - w * 0.9, y0 - 0.06 * s)],
                      dim(colour, 0.78))

    def cane(self) -> None:
        _, side, _, _, hand = self.arm(-self.bag_side)
        self.pen.line([hand[:2], (hand[0] + 0.03 * self.aside, 0.0)], (92, 66, 46), 0.014)

    def draw_head(self) -> None:
        p, pen, r = self.person, self.pen, self.head * self.size
        y = self.neck[1] + 0.6 * self.head + (0.2 * self.head if self.bend < 0.2 else 0.0)
        centre = (0.0, y + 0.2 * self.head, self.neck[2] + 0.05 * self.head + 0.35 * self.bend * self.head)
        x, y, _ = self.at(centre)
        back, hair, long_hair = -self.aside, p.hair, self.labels["hair"] == 1
        if long_hair:
            width, fall = (0.92 + 0.16 * self.details["hair_shape"]) * r, (1.75 + 0.8 * self.details["hair_shape"]) * r
            half = hypot(width * self.face, 0.55 * r * self.aside)
            cx = x + 0.62 * r * back
            lock = [(cx - half * 0.9, y + 0.5 * r), (cx + half * 0.9, y + 0.5 * r), (cx + half * 1.12, y - 0.5 * fall),
                    (cx + half * 0.8, y - fall), (cx - half * 0.8, y - fall), (cx - half * 1.12, y - 0.5 * fall)]
            if self.face > 0.25:  # seen from the front, the hair does not cover the neck
                lock[3:5] = [(cx + half * 0.8, y - fall), (cx + half * 0.45, y - 0.9 * r),
                             (cx - half * 0.45, y - 0.9 * r), (cx - half * 0.8, y - fall)]
            pen.shape(lock, hair)
        pen.oval(x, y, 0.90 * r, r, p.skin)
        if long_hair and self.face <= 0.25:
            pen.shape(lock, hair)  # seen from behind, it covers the neck
        low = 0.16 if long_hair else 0.24
        pen.oval(x + 0.12 * r * back, y + low * r, 0.98 * r, (0.94 if self.face > 0 or long_hair else 0.84) * r, hair)
        middle = (self.turn + pi) % (2 * pi) - pi
        left, right = max(middle - 1.15, -EDGE), min(middle + 1.15, EDGE)
        if right - left > 0.1:
            x0, x1 = x + 0.90 * r * sin(left), x + 0.90 * r * sin(right)
            pen.oval((x0 + x1) / 2, y - 0.22 * r, (x1 - x0) / 2, 0.76 * r, face_colour(p) if p.face else p.skin)
            for eye in (-0.38, 0.38):
                if abs(middle + eye) < 1.25:
                    pen.oval(x + 0.85 * r * sin(middle + eye), y - 0.12 * r, 0.09 * r, 0.12 * r, (44, 34, 32))
        if p.face:
            draw_face(pen, p, x, y, r, middle)
        if self.labels["hat"]:
            self.hat(x, y, r)

    def hat(self, x: float, y: float, r: float) -> None:
        """Draw a cap with a peak, a hat with a brim, or a knitted hat; a cap seen from behind shows its band."""
        kind, pen = int(self.details["hat"] * 3), self.pen
        colour = pick(ACCENTS, self.details["hat_colour"])
        dome = CIRCLE[:13] * (1.06 * r, 0.98 * r) + (x, y + 0.26 * r)
        pen.blob(dome, colour)
        if kind == 0 and self.face > -0.5:
            reach = 0.45 + 0.2 * abs(self.face)
            pen.oval(x + self.aside * 1.0 * r, y + (0.28 - 0.1 * self.face) * r, (reach + 0.2) * r, 0.17 * r,
                     dim(colour, 0.75))
        elif kind == 1:
            pen.oval(x, y + 0.30 * r, 1.65 * r, 0.26 * r, dim(colour, 0.82))
        else:
            pen.blob([(x - 1.08 * r, y + 0.2 * r), (x + 1.08 * r, y + 0.2 * r), (x + 1.08 * r, y + 0.46 * r),
                      (x - 1.08 * r, y + 0.46 * r)], dim(colour, 0.78))
