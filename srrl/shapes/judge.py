"""A network that reads pictures of the embedded world: the judge that nothing was trained on.

It was trained by scripts/pretrain_judge.py on renders of whole, malformed, missing and crowded
shapes and on what fools it (srrl/shapes/frauds.py), knows nothing of the verifier's rules, and is
small.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from srrl.shapes.scenes import COLOURS, RELATIONS, SHAPES, SIZE, Scene, pixels_of

JUDGE_FILE = Path(__file__).parent / "judge.safetensors"
# What can be said of a colour: that it is not there, that it is one of the shapes, or neither.
KINDS = ("absent", *SHAPES, "malformed")
PAIRS = [(a, b) for a in range(len(COLOURS)) for b in range(a)]


class Judge(nn.Module):
    """Convolutions, an embedding, and a head for each question."""

    def __init__(self, width: int = 32, embedding: int = 128):
        super().__init__()
        widths = (3, width, 2 * width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, 1 if i == 0 else 2, 1) for i in range(4)
        )
        self.embedding = nn.Linear(2 * width * (SIZE // 8) ** 2, embedding)
        self.kinds = nn.Linear(embedding, len(COLOURS) * len(KINDS))
        self.relations = nn.Linear(embedding, len(PAIRS) * len(RELATIONS))
        self.strange = nn.Linear(embedding, 1)

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 128] of pixels [B, 3, 32, 32] in [0, 1]."""
        x = 2 * pixels - 1
        for layer in self.layers:
            x = F.gelu(layer(x))
        return F.gelu(self.embedding(x.flatten(1)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of each colour's kind [B, 4, 5], of how the first of a pair of colours stands to
        the second [B, 6, 4], for the pairs of PAIRS, and of whether there is anything else [B]."""
        x = self.embed(pixels)
        return (
            self.kinds(x).view(-1, len(COLOURS), len(KINDS)),
            self.relations(x).view(-1, len(PAIRS), len(RELATIONS)),
            self.strange(x)[:, 0],
        )


def load_judge(file: Path = JUDGE_FILE) -> Judge:
    """The committed judge, in float32."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return judge.eval().requires_grad_(False)


def pair_of(scene: Scene) -> tuple[int, int]:
    """Of a scene its pair's place in PAIRS, and its relation's, read from the pair's first."""
    colours, relations = list(COLOURS), list(RELATIONS)
    first, second = colours.index(scene.first[0]), colours.index(scene.second[0])
    relation = relations.index(scene.relation)
    if first > second:
        return PAIRS.index((first, second)), relation
    return PAIRS.index((second, first)), relation ^ 1  # left and right, above and below change


@torch.no_grad()
def read_parts(judge: Judge, images: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
    """What the judge thinks of images uint8 [B, 3, H, W], as probabilities float32 [B]:

    presence  both colours are there, and nothing else
    shape     both are the right shapes, given that they are there
    relation  the first stands to the second as it should
    """
    kinds, relations, strange = judge(pixels_of(images))
    kinds, relations = kinds.softmax(-1), relations.softmax(-1)
    rows, colours = torch.arange(len(scenes)), list(COLOURS)
    presence, shape = torch.ones(len(scenes)), torch.ones(len(scenes))
    named = torch.zeros(len(scenes), len(colours), dtype=torch.bool)
    for thing in ("first", "second"):
        said = [getattr(scene, thing) for scene in scenes]
        colour = torch.tensor([colours.index(c) for c, _ in said])
        kind = torch.tensor([KINDS.index(s) for _, s in said])
        of_colour = kinds[rows, colour]
        there = 1 - of_colour[:, 0]
        presence = presence * there
        shape = shape * of_colour[rows, kind] / there.clamp(min=1e-6)
        named[rows, colour] = True
    absent = torch.where(named, torch.ones(()), kinds[..., 0]).prod(-1)
    pairs = torch.tensor([pair_of(scene) for scene in scenes]).view(-1, 2)
    return {
        "presence": presence * absent * torch.sigmoid(-strange),
        "shape": shape.clamp(max=1),
        "relation": relations[rows, pairs[:, 0], pairs[:, 1]],
    }
