"""What a study's finished runs say: what is kept of each, beside what was kept before."""

import statistics
from dataclasses import asdict, replace
from functools import cache
from typing import Any, TypeVar

from ml_collections import ConfigDict

from rewards import REGISTRY, reward_class
from srrl.assess.arms import (
    Evaluation,
    Run,
    at_test_time,
    evaluation_of,
    is_trained,
    nfe_of,
    prompt_files,
)
from srrl.assess.cells import Result
from srrl.assess.records import JUDGED, TEST_TIME, Record, Row, Signal, file_of, read
from srrl.assess.report import lines_of
from srrl.run.folder import read_lines

Kept = TypeVar("Kept", Signal, Row)


def collect(study: ConfigDict, runs: list[Run]) -> list[Record]:
    """The file's records and those of the runs that are finished, which replace theirs."""
    records = {record.key: record for record in read(file_of(study))}
    for run in (None, *runs):
        evaluation = evaluation_of(study, run)
        if evaluation.done() and (run is None or is_trained(run)):
            found = record_of(study, evaluation)
            before = records.get(found.key)
            records[found.key] = with_test_time(found, before) if before else found
    return [records[key] for key in sorted(records)]


def with_test_time(found: Record, before: Record) -> Record:
    """A run's record with the further ways to sample of an earlier one, if it has none."""
    if found.test_time():
        return found
    kept = tuple(row for row in before.rows if row.part == TEST_TIME)
    return replace(found, rows=found.rows + kept)


def asked_for(study: ConfigDict, runs: list[Run], records: list[Record]) -> list[Record]:
    """The records of the study's own runs (and of no training) that have all of its means."""
    keys = {(None, None, None, 0), *((r.arm, r.budget, r.seed, r.stages) for r in runs)}
    return [
        r
        for r in records
        if (r.arm, r.budget, r.seed, r.stages) in keys
        and all(
            r.judged(split, sampler, reward)
            for split in study.splits
            for sampler in study.samplers
            for reward in study.rewards
        )
    ]


def record_of(study: ConfigDict, evaluation: Evaluation) -> Record:
    """Of a finished run, rounded as it is kept, so that both give the same tables."""
    run = evaluation.run
    further = at_test_time(study, run)
    rows = rows_of(study, JUDGED, evaluation.results())
    if further and further.done():
        rows += rows_of(study, TEST_TIME, further.results())
    return Record(
        run.arm if run else None,
        run.budget if run else None,
        run.seed if run else None,
        run.stages if run else 0,
        nfe_of(run) if run else 0,
        rounded(signal_of(study, run)) if run else None,
        tuple(map(rounded, rows)),
    )


def rounded(record: Kept) -> Kept:
    """With six digits."""
    some = asdict(record)
    kept: dict[str, Any] = {k: round(v, 6) if isinstance(v, float) else v for k, v in some.items()}
    return type(record)(**kept)


def rows_of(study: ConfigDict, part: str, results: list[Result]) -> list[Row]:
    splits = {file: split for split, file in prompt_files(study).items()}
    scored = [(result, reward) for result in results for reward in result.scores]
    rows = []
    for line, (result, reward) in zip(lines_of(results), scored, strict=True):
        less = line.difference
        rows.append(
            Row(
                part,
                splits[result.cell.prompts],
                line.sampler,
                reward,
                line.count,
                line.images,
                line.score.mean,
                right_share(result, reward),
                line.score.low,
                line.score.high,
                less.mean if less else None,
                less.low if less else None,
                less.high if less else None,
                line.diversity,
                line.nfe,
                line.seconds,
            )
        )
    return rows


def right_share(result: Result, reward: str) -> float | None:
    """Of the pictures, where the reward says from which score one is right."""
    least = right_from(reward)
    return None if least is None else (result.scores[reward] >= least).double().mean().item()


@cache
def right_from(reward: str) -> float | None:
    """The score from which a reward calls a picture right; None where it does not."""
    return getattr(reward_class(reward, REGISTRY.get(reward, reward)), "right", None)


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
