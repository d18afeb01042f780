"""The arrows between rooms run down only: read off the imports themselves."""

import ast
from pathlib import Path

import pytest

from srrl.config import REPOSITORY

# From the top down. A module imports from its own level and from lower ones; within a room the
# order is its own business, but no two modules import each other.
LEVELS = [
    ["scripts"],
    ["srrl.measure", "srrl.assess", "srrl.demo", "srrl.doctor", "srrl.report"],
    ["srrl.trainer"],
    ["srrl.batch", "srrl.image_run", "srrl.records", "srrl.rig", "srrl.shapes.pretraining"],
    [
        "srrl.drawing",
        "srrl.evaluation",
        "srrl.learner",
        "srrl.rollout",
        "srrl.rounds",
        "srrl.run",
    ],
    ["srrl.models"],
    ["rewards"],
    ["srrl.rig.actor", "srrl.rig.seeing"],
    ["srrl.models.vlm", "srrl.models.random_vlm"],
    ["srrl.models.conversations", "srrl.models.language_lora"],
    ["srrl.advantages", "srrl.budget", "srrl.curriculum", "srrl.ddim", "srrl.ppo", "srrl.prompts"],
    [
        "srrl.config",
        "srrl.rig.forms",
        "srrl.rig.graphs",
        "srrl.run.best",
        "srrl.run.folder",
        "srrl.shapes",
    ],
    ["srrl.methods"],
    ["srrl.checks", "srrl.elastic", "srrl.life", "srrl.repository", "srrl.surroundings"],
    ["srrl.errors"],
]
# What may be asked for from below: facts about machines and numbers, which know of nothing.
LEAVES = {"srrl.models.hub", "srrl.models.random_weights"}
# What looks at pictures, and knows nothing of those who ask.
SEEING = {"srrl.models.vlm", "srrl.models.conversations", "srrl.rig.graphs", "srrl.rig.seeing"}


def modules() -> dict[str, Path]:
    found = [
        p for room in ("scripts", "srrl", "rewards") for p in REPOSITORY.glob(f"{room}/**/*.py")
    ]
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in found
    }


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports, anywhere in it."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return {name for name in named if name in MODULES and name not in ("srrl", "rewards")} | (
        {"rewards"} & named
    )


def level(module: str) -> int:
    found = {
        room: i
        for i, rooms in enumerate(LEVELS)
        for room in rooms
        if module == room or module.startswith(room + ".")
    }
    assert found, f"{module} has no place among the rooms"
    return found[max(found, key=len)]  # a module's own place before its room's


@pytest.mark.parametrize("module", [m for m in MODULES if m != "srrl"])
def test_no_arrow_runs_up(module):
    for other in imports(MODULES[module]) - LEAVES - {module}:
        assert level(other) >= level(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("rewards")])
def test_rewards_know_values_errors_signals_shapes_and_who_sees_and_nothing_above(module):
    known = LEAVES | SEEING | {"srrl.checks", "srrl.errors", "srrl.life"}
    others = imports(MODULES[module]) - known
    assert not [m for m in others if not m.startswith(("rewards", "srrl.shapes"))]


def test_no_two_modules_import_each_other():
    arrows = {m: imports(path) for m, path in MODULES.items()}
    circles = {
        (a, b) for a, others in arrows.items() for b in others if a < b and a in arrows.get(b, ())
    }
    assert not circles


def test_no_module_is_past_what_is_read_in_one_pass():
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 340}
    assert not long
