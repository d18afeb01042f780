"""What RL-RIG is to draw: prompts with their scene graphs."""

import json
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import resolve
from srrl.errors import UserError
from srrl.prompts import check_model, check_splits, check_text, load_prompts, split_files
from srrl.rig.graphs import Requirement, SceneGraph, load_rows, parse_graph


@dataclass(frozen=True)
class Wish:
    """What is to be drawn. number: with a seed it decides the noise, and what is written."""

    prompt: str
    graph: SceneGraph
    number: int

    def __str__(self) -> str:
        return self.prompt

    @property
    def requirements(self) -> list[Requirement]:
        return self.graph.requirements()


def wishes_of(file: str) -> list[Wish]:
    """The prompts of a file of them, or of LAION-SG's rows, with their scene graphs. Raises
    UserError."""
    path = Path(resolve(file))
    try:
        first = json.loads(path.read_text(encoding="utf-8-sig"))[0]
    except (OSError, ValueError, LookupError, TypeError):
        first = None
    if isinstance(first, dict) or path.suffix.lower() == ".jsonl":
        graphs = load_rows(path)
        for number, graph in enumerate(graphs, 1):
            check_text(str(graph), f"scene graphs {file!r}, row {number}")
        return [Wish(str(graph), graph, i) for i, graph in enumerate(graphs)]
    return [wish_of(prompt, i, file) for i, prompt in enumerate(load_prompts(str(path)))]


def wish_of(prompt: str, number: int, where: str) -> Wish:
    """Raises UserError for a prompt from `where` that is no scene graph, or no text."""
    check_text(prompt, where)
    try:
        return Wish(prompt, parse_graph(prompt), number)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def split_wishes(c: ConfigDict) -> dict[str, list[Wish]]:
    """The prompts of each split: "train", and "heldout" where it is evaluated."""
    return {split: wishes_of(file) for split, file in split_files(c).items()}


def check_files(c: ConfigDict) -> None:
    """Before training: raise UserError for prompt files, a local model or a LoRA that are not
    there, and for more trained steps than an edit has."""
    check_splits(c, {k: [wish.prompt for wish in v] for k, v in split_wishes(c).items()})
    check_model("config.pretrained.model", resolve(c.pretrained.model))
    for part in ("actor", "editor"):
        if c[part].lora:
            from srrl.models.locate import locate  # this imports torch

            locate(c[part].lora, f"config.{part}.lora={c[part].lora!r}")
    own, depth = c.phase.editor, c.editor.depth
    steps = (c.editor.kind == "inversion" and depth) or c.editor.num_steps
    if "editor" in c.phases and own.trained_steps + own.skip_last > steps:
        raise UserError(
            f"config.phase.editor.trained_steps={own.trained_steps} is out of range: with "
            f"skip_last={own.skip_last} at most {steps - own.skip_last} of an edit's {steps} steps"
        )
