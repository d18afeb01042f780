"""The exact verifier of the embedded world: does the picture show what the prompt says?

The picture is explained, not classified (srrl/shapes/fit.py): the prompt's two things are fitted to
its pixels, and the score falls with what is left over and with things of a wrong place or size,

    score = (thing_1 + thing_2 + 6 relation thing_1 thing_2) / 8   in [0, 1]

- thing     1 / (1 + (left / LEFT)^5), of what is not explained nearer to it than to the other one,
            times how far its radius is one that the renderer draws and how much of it is seen
- relation  the centres stand apart in the named direction, and more so than across it

Every term is continuous in the fitted numbers, and each of the two things earns an eighth of the
score by itself. Pictures rendered from the prompt's own scene score 0.99 and more, the same through
the pipeline's VAE 0.97 on average; the kinds of srrl/shapes/frauds.py below 0.5, as do the opposite
relation, a wrong shape or colour; noise or a blank page 0.
"""

import torch
from torch import Tensor

from srrl.shapes.fit import fit
from srrl.shapes.scenes import RELATIONS, parse, pixels_of

# What may be left over of a thing for half of it, between what the pipeline's VAE leaves of clean
# renders (1.5 at most in 19 of 20) and what pentagons leave of circles (2.6 at least in 19 of 20).
LEFT, STEEP = 2.3, 5
# Radii below and above which a thing is none, and from which and up to which it is one.
NONE_BELOW, FROM, UP_TO, NONE_ABOVE = 2.7, 3.7, 5.9, 6.8
HIDDEN, WHOLE = 0.8, 0.95  # share of a thing in the picture for none of it, and for all


class ShapesVerifier:
    """Reward `shapes`. Needs no weights and runs on the CPU.

    success: if given, the score is 1 from this one on and 0 below: a reward that says only whether.
    right: a picture is right from this score on; with `success`, those are right that it says are.
    """

    right = 0.5

    def __init__(self, success: float | None = None):
        self.success = success

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for the first prompt outside the grammar."""
        for prompt in prompts:
            parse(prompt)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float32 [B] in [0, 1] of images uint8 [B, 3, H, W] against their prompts."""
        scenes = [parse(prompt) for prompt in prompts]
        found = fit(pixels_of(images), scenes)
        size = ((found.radius - NONE_BELOW) / (FROM - NONE_BELOW)).clamp(0, 1)
        size = size * ((NONE_ABOVE - found.radius) / (NONE_ABOVE - UP_TO)).clamp(0, 1)
        seen = ((found.seen - HIDDEN) / (WHOLE - HIDDEN)).clamp(0, 1)
        things = size * seen / (1 + (found.left / LEFT) ** STEEP)
        direction = torch.tensor([RELATIONS[scene.relation] for scene in scenes])
        apart = found.centre[:, 0] - found.centre[:, 1]
        along = (apart * direction).sum(1)
        across = (apart * direction.flip(1)).sum(1).abs()
        relation = torch.sigmoid((along - across - 2) / 1.5)
        scores = (things.sum(1) + 6 * relation * things.prod(1)) / 8
        return scores if self.success is None else (scores >= self.success).float()
