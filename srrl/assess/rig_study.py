"""RL-RIG's study: what its phases gain over the untrained loop, beside what has no training."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ml_collections import ConfigDict

from srrl.assess.results import over_seeds, put_between
from srrl.config import REPOSITORY
from srrl.rig.assess import column, markdown
from srrl.run.checkpoint import write_atomic
from srrl.run.folder import read_lines
from srrl.run.statistics import interval, paired_difference
from srrl.run.tracking import to_json

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


@dataclass(frozen=True)
class Record:
    """What is kept of drawn pictures: the arm, or the way without training; the seed of what was
    trained; what of the study's settings they depend on; the means of SHOWN; and MAIN of each
    prompt, over its pictures."""

    arm: str
    seed: int | None
    settings: list
    means: dict[str, float]
    prompts: list[float]

    @classmethod
    def of(cls, study: ConfigDict, arm: str, seed: int | None) -> "Record | None":
        """Of a finished evaluation, None where there is none; rounded as it is kept."""
        folder = Path(study.output_dir) / "base" if seed is None else arm_folder(study, arm, seed)
        if not (folder / "table.json").exists():
            return None
        way = arm if seed is None else "actor"
        lines = [line for line in read_lines(folder / "pictures.jsonl") if line["way"] == way]
        means = {key: round(sum(x[key] for x in lines) / len(lines), 6) for key in SHOWN}
        prompts = column(lines, MAIN, study.images)
        assert prompts is not None  # every line has it
        rounded = [round(value, 4) for value in prompts.tolist()]
        return cls(arm, seed, settings_of(study), means, rounded)

    @property
    def values(self) -> torch.Tensor:
        return torch.tensor(self.prompts, dtype=torch.float64)

    @property
    def shown(self) -> list[float]:
        return [self.means[key] for key in SHOWN]


def settings_of(study: ConfigDict) -> list:
    """As JSON gives them back."""
    return [study.preset, [*study.overrides], study.num_prompts, study.images]


def collect(study: ConfigDict, file: Path) -> dict[tuple[str, int | None], Record]:
    """The records of the file, and of the study's finished evaluations, which replace theirs; the
    file has them all from now on."""
    kept = [Record(**line) for line in read_lines(file)]
    records = {(r.arm, r.seed): r for r in kept if r.settings == settings_of(study)}
    asked = [(way, None) for way in study.ways]
    asked += [(arm, seed) for arm in ARMS for seed in study.seeds]
    for arm, seed in asked:
        found = Record.of(study, arm, seed)
        if found:
            records[arm, seed] = found
    ordered = sorted(records.values(), key=lambda r: (r.seed or 0, r.arm))
    write_atomic(file, "".join(to_json(asdict(record)) + "\n" for record in ordered))
    return {key: records[key] for key in asked if key in records}


def write_results(study: ConfigDict) -> str:
    """Write the document's table anew, of the runs that there are and those that the file beside it
    (NAME.jsonl) has kept; returns it."""
    page = REPOSITORY / study.report
    records = collect(study, page.with_name(f"{study.name}.jsonl"))
    if any((way, None) not in records for way in study.ways):
        return f"nothing is done yet in {study.output_dir}"
    untrained = records["actor", None].values
    rows = [["", *HEAD, f"{HEAD[0]}, less the untrained loop", "seeds clear of 0"]]
    for way in study.ways:
        record = records[way, None]
        low, high = interval(record.values)[1:]
        shown = [f"{record.shown[0]:.3f} [{low:.3f}, {high:.3f}]", *formatted(record.shown)[1:]]
        gain, half = paired_difference(untrained, record.values)
        rows.append([f"`{way}`", *shown, f"{gain:+.3f} ± {half:.3f} (prompts)", ""])
    for arm, title in ARMS.items():
        found = [records[arm, seed] for seed in study.seeds if (arm, seed) in records]
        if not found:
            continue
        every = torch.tensor([record.shown for record in found])
        pairs = [paired_difference(untrained, record.values) for record in found]
        clear = sum(gain - half > 0 for gain, half in pairs)
        cells = [over_seeds(every[:, 0].tolist()), *formatted(every.mean(0).tolist())[1:]]
        gains = over_seeds([gain for gain, _ in pairs], sign="+")
        rows.append([title, *cells, f"{gains} (seeds)", f"{clear} of {len(found)}"])
    text = markdown(rows) + "\n"
    write_atomic(page, put_between(page.read_text(encoding="utf-8"), study.name, text))
    return text


def arm_folder(study: ConfigDict, arm: str, seed: int) -> Path:
    run = f"editor_{seed}" if arm == "editor" else f"both_{seed}"
    return Path(study.output_dir) / run / f"drawn_{arm}"


def formatted(values: list[float]) -> list[str]:
    places = (3, 3, 3, 3, 0, 1)
    return [f"{value:.{n}f}" for value, n in zip(values, places, strict=True)]
