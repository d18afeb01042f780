"""What a study keeps of its runs: a line each in NAME.jsonl beside its document.

The runs themselves are too large to keep. The lines hold what every table is made of, so that an
arm that is added later is compared with the others seed by seed.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from ml_collections import ConfigDict

from srrl.assess.arms import Evaluation, Run, at_test_time, evaluation_of, is_trained, nfe_of
from srrl.assess.cells import Result
from srrl.assess.report import Figure, Line, lines_of
from srrl.config import REPOSITORY
from srrl.run.checkpoint import write_atomic
from srrl.run.folder import read_lines
from srrl.run.tracking import to_json

Means = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Signal:
    """What a run's training had to learn from: the mean score of its samples, the share of mixed
    groups (None where a group is one picture), trajectories selected a 1,000 network evaluations.
    """

    score: float
    mixed: float | None
    selected: float


@dataclass(frozen=True)
class Record:
    """A finished run; arm, budget, seed and signal are None for the model before training.

    nfe        network evaluations of its training
    means      the mean score by split ("heldout", "train", "all"), sampler and reward
    test_time  the further ways to sample from it, where it was asked for them
    """

    arm: str | None
    budget: str | None
    seed: int | None
    stages: int
    nfe: int
    means: Means
    signal: Signal | None
    test_time: list[Line] | None

    @property
    def key(self) -> tuple[int, str, str]:
        return self.seed or 0, self.budget or "", self.arm or ""

    def mean(self, split: str, sampler: str, reward: str) -> float:
        return self.means[split][sampler][reward]

    def line(self) -> str:
        return to_json(asdict(self)) + "\n"

    @classmethod
    def of(cls, line: Mapping) -> "Record":
        signal, ways = line["signal"], line["test_time"]
        given = {
            "signal": signal and Signal(**signal),
            "test_time": ways and [line_of(way) for way in ways],
        }
        return cls(**{**line, **given})


def line_of(saved: Mapping) -> Line:
    difference = saved["difference"]
    figures = {
        "score": Figure(**saved["score"]),
        "difference": difference and Figure(**difference),
    }
    return Line(**{**saved, **figures})


def file_of(study: ConfigDict) -> Path:
    return (REPOSITORY / study.report).with_name(f"{study.name}.jsonl")


def collect(study: ConfigDict, runs: list[Run]) -> list[Record]:
    """The file's records and those of the runs that are finished, which replace theirs."""
    file = file_of(study)
    records = {r.key: r for r in map(Record.of, read_lines(file))} if file.exists() else {}
    for run in (None, *runs):
        evaluation = evaluation_of(study, run)
        if evaluation.done() and (run is None or is_trained(run)):
            found = record_of(study, evaluation)
            before = records.get(found.key)
            if before and found.test_time is None:
                found = replace(found, test_time=before.test_time)
            records[found.key] = found
    return [records[key] for key in sorted(records)]


def keep(study: ConfigDict, records: list[Record]) -> None:
    """Write the file, one line a record."""
    file_of(study).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file_of(study), "".join(record.line() for record in records))


def asked_for(study: ConfigDict, runs: list[Run], records: list[Record]) -> list[Record]:
    """The records of the study's own runs (and of no training) that have all of its means."""
    keys = {(None, None, None, 0), *((r.arm, r.budget, r.seed, r.stages) for r in runs)}
    return [
        r
        for r in records
        if (r.arm, r.budget, r.seed, r.stages) in keys
        and all(
            reward in r.means.get(split, {}).get(sampler, {})
            for split in ("all", *study.splits)
            for sampler in study.samplers
            for reward in study.rewards
        )
    ]


def record_of(study: ConfigDict, evaluation: Evaluation) -> Record:
    """Of a finished run, rounded as it is kept, so that both give the same tables."""
    run = evaluation.run
    further = at_test_time(study, run)
    record = Record(
        run and run.arm,
        run and run.budget,
        run and run.seed,
        run.stages if run else 0,
        nfe_of(run) if run else 0,
        means_of(evaluation.results()),
        signal_of(study, run) if run else None,
        lines_of(further.results()) if further and further.done() else None,
    )
    return Record.of(json.loads(record.line(), parse_float=lambda text: round(float(text), 6)))


def means_of(results: list[Result]) -> Means:
    """By split, sampler and reward, over prompts and pictures."""
    scores: dict[tuple[str, str, str], list[torch.Tensor]] = {}
    for result in results:
        for split in (Path(result.cell.prompts).stem.rpartition("_")[2], "all"):
            for reward, values in result.scores.items():
                of_cell = scores.setdefault((split, result.cell.sampler, reward), [])
                of_cell.append(values.double().flatten())
    means: Means = {}
    for (split, sampler, reward), parts in scores.items():
        by_reward = means.setdefault(split, {}).setdefault(sampler, {})
        by_reward[reward] = torch.cat(parts).mean().item()
    return means


def signal_of(study: ConfigDict, run: Run) -> Signal:
    """A group is the branches of a prompt in a stage and round; it is mixed where their scores lie
    more than 0.5 apart."""
    lines = read_lines(run.folder / "samples.jsonl")
    groups: dict[tuple, list[float]] = {}
    for line in lines:
        if line["scores"] is None:  # a round that shares the last one's
            continue
        key = (line["stage"], line["slot"], line["round"])
        groups.setdefault(key, []).append(line["scores"][study.rewards[0]])
    single = all(len(g) == 1 for g in groups.values())
    return Signal(
        statistics.fmean(score for g in groups.values() for score in g),
        None if single else statistics.fmean(max(g) - min(g) > 0.5 for g in groups.values()),
        1000 * sum(line["selected"] for line in lines) / nfe_of(run),
    )
