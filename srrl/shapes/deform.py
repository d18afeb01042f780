"""Shapes that are not quite right: outlines with spikes, bumps and notches.

The verifier must tell them from clean ones, and the second judge is trained to.
"""

import math

import torch
from torch import Tensor

from srrl.shapes.scenes import SIZE

FINE = 4  # samples a pixel in each direction
# Angles of the corners, counted from the right towards the bottom of the picture.
CORNERS = {
    "square": [math.pi * (2 * k + 1) / 4 for k in range(4)],
    "triangle": [-math.pi / 2, math.pi / 6, 5 * math.pi / 6],
}


def outline(shape: str, angle: Tensor) -> Tensor:
    """Distance from the centroid to the outline at `angle`, for a shape of area pi."""
    if shape == "circle":
        return torch.ones_like(angle)
    if shape == "square":
        return math.sqrt(math.pi) / 2 / torch.maximum(angle.cos().abs(), angle.sin().abs())
    inradius = math.sqrt(math.pi / (3 * math.sqrt(3)))
    sides = [math.pi / 2, math.pi / 2 + 2 * math.pi / 3, math.pi / 2 - 2 * math.pi / 3]
    return inradius / torch.stack([(angle - side).cos() for side in sides]).amax(0)


def deformed(shape: str, centre: Tensor, radius: Tensor, bumps: Tensor, size: int = SIZE) -> Tensor:
    """Antialiased masks [B, size, size] of a shape of `radius` [B] at `centre` [B, 2] whose outline
    is pushed out (or in) by bumps [B, n, 3]: each an angle, a half-width in radians, and a height
    in pixels, pointed like a tent."""
    axis = (torch.arange(size * FINE) + 0.5) / FINE
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    angle = torch.atan2(y, x)
    edge = radius[:, None, None] * outline(shape, angle)
    for at, width, height in (bump.unbind(1) for bump in bumps.unbind(1)):
        away = angle - at[:, None, None]
        away = torch.atan2(away.sin(), away.cos()).abs()
        tent = (1 - away / width[:, None, None]).clamp(min=0)
        edge = edge + height[:, None, None] * tent
    inside = (torch.sqrt(x * x + y * y) < edge).float()
    return inside.view(len(inside), size, FINE, size, FINE).mean((2, 4))


def spikes(shape: str, batch: int, width: float, height: float) -> Tensor:
    """The bumps [B, n, 3] that draw every corner of a shape out into a spike."""
    corners = torch.tensor(CORNERS[shape])
    rest = torch.tensor([width, height]).expand(len(corners), 2)
    return torch.cat([corners[:, None], rest], 1).expand(batch, -1, -1)
