"""The runs of docs/RECIPES.md that were made on embedded models, against their committed curves.

python -m tests.slow.test_recipes runs/tiny     writes docs/recipes/tiny.csv of a finished run
"""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

from srrl.config import REPOSITORY
from srrl.run.folder import read_lines
from tests.slow.commands import run

pytestmark = pytest.mark.slow
CURVES = REPOSITORY / "docs" / "recipes"
KEPT = {"rounds": "rounds", "evaluations": "nfe_total", "score": "reward/shapes/mean"}
KEPT |= {"loss": "loss", "gradient": "grad_norm"}


def machine() -> str:
    """What a CPU's sums depend on: its model, and the version that computes."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.findall(r"^(?:cpu family|model|stepping)\s*: (\w+)", told, re.MULTILINE)[:3]
    kind = torch.backends.cpu.get_cpu_capability()
    return " ".join([*found, kind, f"torch {torch.__version__.split('+')[0]}", "one thread"])


def curve(folder: Path) -> list[dict[str, str]]:
    """A row a stage: what of its metrics is kept, as it is."""
    return [
        {"stage": str(line["stage"])} | {name: repr(line[key]) for name, key in KEPT.items()}
        for line in read_lines(folder / "metrics.jsonl")
    ]


def committed(name: str) -> tuple[str, list[dict[str, str]]]:
    """The machine that made a curve, and its rows."""
    first, *rows = (CURVES / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return first.removeprefix("# "), list(csv.DictReader(rows))


def write(folder: Path) -> None:
    CURVES.mkdir(exist_ok=True)
    rows = curve(folder)
    with open(CURVES / f"{folder.name}.csv", "w", newline="", encoding="utf-8") as file:
        file.write(f"# {machine()}\n")
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_the_first_stage_is_the_committed_one(name, tmp_path):
    made_on, rows = committed(name)
    preset = f"--config=config/stage_process.py:{name}"
    flags = [f"--config.output_dir={tmp_path}", "--config.eval.every=0", "--config.plan=false"]
    # The first stage has six updates.
    killed = [sys.executable, "tests/slow/kill_at.py", "update", "7", preset, *flags]
    run(*killed, check=-9, OMP_NUM_THREADS="1")
    (found,) = curve(tmp_path / name)
    first = rows[0]
    for counted in ("stage", "rounds", "evaluations"):
        assert found[counted] == first[counted]
    if machine() == made_on:
        assert found == first
    else:  # other kernels round otherwise; the first stage's pictures are the same but for that
        assert float(found["score"]) == pytest.approx(float(first["score"]), abs=0.02)
        assert float(found["gradient"]) == pytest.approx(float(first["gradient"]), rel=0.2)


@pytest.mark.parametrize("name", ["tiny", "tiny_xl"])
def test_the_committed_curve_rises(name):
    _, rows = committed(name)
    scores = [float(row["score"]) for row in rows]
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 0.1


if __name__ == "__main__":
    write(Path(sys.argv[1]))
