"""RL-RIG's study: what its phases gain over the untrained loop, beside what has no training."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict

from srrl.assess.results import over_seeds, put_between, signed
from srrl.config import REPOSITORY
from srrl.rig.assess import column, markdown
from srrl.run.checkpoint import write_atomic
from srrl.run.folder import read_lines
from srrl.run.statistics import interval, paired_difference

ARMS = {
    "actor": "phase 1: the actor",
    "editor": "phase 2 alone: the editor",
    "both": "phase 1, then 2: both",
}
MAIN = "exact/all"
SHOWN = ("exact/all", "exact/share", "exact/sg_iou", "judge/judge", "evaluations", "calls")
HEAD = ("all", "share", "SG-IoU", "judge", "evaluations", "VLM calls")


@dataclass(frozen=True)
class Job:
    """Commands, the file that is there once they are done, and how long they take, of a way's
    pictures."""

    name: str
    commands: list[list[str]]
    done: Path
    work: float

    def todo(self) -> list[list[str]]:
        return [] if self.done.exists() else self.commands


def jobs_of(study: ConfigDict) -> list[Job]:
    """What is to be run: the ways without training, and for each seed both phases one after the
    other, the second alone, and what each of these draws."""
    out = Path(study.output_dir)
    base = out / "base"
    jobs = [Job("base", [evaluate(study, base, study.ways)], base / "table.json", 6.0)]
    for kind, phases in (("both", ("actor", "editor")), ("editor", ("editor",))):
        for seed in study.seeds:
            run = f"{kind}_{seed}"
            commands = [train(study, run, phases, seed)]
            for arm in ("actor", "both") if len(phases) > 1 else ("editor",):
                trained = phases if arm == "both" else (arm,)
                folder, loras = out / run / f"drawn_{arm}", {p: out / run / p for p in trained}
                commands.append(evaluate(study, folder, ("actor",), loras))
            jobs.append(Job(run, commands, folder / "table.json", 7.0 * len(phases)))
    return jobs


def train(study: ConfigDict, run: str, phases: tuple[str, ...], seed: int) -> list[str]:
    values = [
        *study.overrides,
        f"phases={json.dumps(phases)}",
        f"seed={seed}",
        f"output_dir={study.output_dir}",
        f"run_name={run}",
    ]
    return command(study, "train.py", values)


def evaluate(
    study: ConfigDict, folder: Path, ways: tuple[str, ...], loras: dict[str, Path] | None = None
) -> list[str]:
    values = [
        f"evaluate.ways={json.dumps(list(ways))}",
        f"evaluate.images={study.images}",
        f"evaluate.extract={str(not loras).lower()}",
    ]
    values += [f"{phase}.lora={where}" for phase, where in (loras or {}).items()]
    few = ["--num-prompts", str(study.num_prompts)] if study.num_prompts else []
    return [*command(study, "rig.py", values, "evaluate"), *few, "--out", str(folder)]


def command(study: ConfigDict, script: str, values: list[str], *first: str) -> list[str]:
    path = str(REPOSITORY / "scripts" / script)
    flags = [f"--config.{value}" for value in values]
    return [sys.executable, path, *first, f"--config=config/rig.py:{study.preset}", *flags]


# ------------------------------------------------------------------------------- what came of it


def drawn(folder: Path, way: str) -> list[dict]:
    """The pictures of a way in a finished evaluation."""
    return [line for line in read_lines(folder / "pictures.jsonl") if line["way"] == way]


def write_results(study: ConfigDict) -> str:
    """Write the document's table anew, of the runs that there are; returns it."""
    out = Path(study.output_dir)
    if not (out / "base" / "table.json").exists():
        return f"nothing is done yet in {out}"
    base = {way: drawn(out / "base", way) for way in study.ways}
    means = {way: [mean(lines, key) for key in SHOWN] for way, lines in base.items()}
    untrained = column(base["actor"], MAIN, study.images)
    rows = [["", *HEAD, f"{HEAD[0]}, less the untrained loop", "seeds clear of 0"]]
    for way, values in means.items():
        low, high = interval(column(base[way], MAIN, study.images))[1:]
        shown = [f"{values[0]:.3f} [{low:.3f}, {high:.3f}]", *formatted(values)[1:]]
        gain, half = paired_difference(untrained, column(base[way], MAIN, study.images))
        rows.append([f"`{way}`", *shown, f"{gain:+.3f} ± {half:.3f} (prompts)", ""])
    for arm, title in ARMS.items():
        found = {seed: drawn(arm_folder(study, arm, seed), "actor") for seed in study.seeds}
        found = {seed: lines for seed, lines in found.items() if lines}
        if not found:
            continue
        every = torch.tensor([[mean(lines, key) for key in SHOWN] for lines in found.values()])
        pairs = [
            paired_difference(untrained, column(lines, MAIN, study.images))
            for lines in found.values()
        ]
        clear = sum(gain - half > 0 for gain, half in pairs)
        cells = [over_seeds(every[:, 0].tolist()), *formatted(every.mean(0).tolist())[1:]]
        gains = signed([gain for gain, _ in pairs])
        rows.append([title, *cells, f"{gains} (seeds)", f"{clear} of {len(found)}"])
    text = markdown(rows) + "\n"
    page = Path(study.report)
    page = page if page.is_absolute() else REPOSITORY / page
    write_atomic(page, put_between(page.read_text(encoding="utf-8"), study.name, text))
    return text


def arm_folder(study: ConfigDict, arm: str, seed: int) -> Path:
    run = f"editor_{seed}" if arm == "editor" else f"both_{seed}"
    return Path(study.output_dir) / run / f"drawn_{arm}"


def mean(lines: list[dict], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def formatted(values: list[float]) -> list[str]:
    places = (3, 3, 3, 3, 0, 1)
    return [f"{value:.{n}f}" for value, n in zip(values, places, strict=True)]
