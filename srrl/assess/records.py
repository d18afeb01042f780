"""What a study keeps of its runs: NAME.csv beside its document.

The runs themselves are too large to keep. The file holds what every table is made of, so that an
arm that is added later is compared with the others seed by seed. It has a row for each run, split,
way of sampling and reward; a run's own columns stand in each of its rows.
"""

import csv
import io
import math
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ml_collections import ConfigDict

from srrl.assess.report import Figure, Line
from srrl.config import REPOSITORY
from srrl.run.checkpoint import write_atomic

JUDGED, TEST_TIME = "judged", "test time"
WORDS = ("arm", "budget", "part", "split", "sampler", "reward")
WHOLE = ("seed", "stages", "nfe", "prompts", "images")


@dataclass(frozen=True)
class Signal:
    """What a run's training had to learn from.

    sampled   the mean score of its samples
    mixed     the share of mixed groups; None where a group is one picture
    selected  trajectories selected a 1,000 network evaluations
    """

    sampled: float
    mixed: float | None
    selected: float


@dataclass(frozen=True)
class Row:
    """A run judged by a reward on a split, sampled in one way. None: not known, or not defined.

    part            JUDGED as every run is, or TEST_TIME, the further ways of one
    split           "heldout", "train" or "wordings"
    prompts         and images of each
    mean, low, high the score with its 95% interval over prompts
    right           the share of the pictures that score as right (rewards/__init__.py)
    difference      to the first way of sampling, paired, with its interval
    evaluations     of the network, and seconds, a picture
    """

    part: str
    split: str
    sampler: str
    reward: str
    prompts: int
    images: int
    mean: float
    right: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    diversity: float | None = None
    evaluations: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Record:
    """A finished run; arm, budget, seed and signal are None for the model before training. nfe:
    network evaluations of its training."""

    arm: str | None
    budget: str | None
    seed: int | None
    stages: int
    nfe: int
    signal: Signal | None
    rows: tuple[Row, ...]

    @property
    def key(self) -> tuple[int, str, str]:
        return self.seed or 0, self.budget or "", self.arm or ""

    def judged(self, split: str, sampler: str, reward: str) -> list[Row]:
        """The rows of a split, or of "all": trained and held-out prompts."""
        asked = (JUDGED, sampler, reward)
        own = [row for row in self.rows if (row.part, row.sampler, row.reward) == asked]
        splits = ("train", "heldout") if split == "all" else (split,)
        return [row for row in own if row.split in splits]

    def mean(self, split: str, sampler: str, reward: str) -> float:
        """Over the pictures of a split, or of "all"."""
        rows = self.judged(split, sampler, reward)
        return statistics.fmean([r.mean for r in rows], [r.prompts * r.images for r in rows])

    def right(self, split: str, sampler: str, reward: str) -> float | None:
        """The share of right pictures there; None where it is not known."""
        rows = self.judged(split, sampler, reward)
        shares = [row.right for row in rows if row.right is not None]
        if len(shares) < len(rows):
            return None
        return statistics.fmean(shares, [r.prompts * r.images for r in rows])

    def test_time(self) -> list[Line]:
        """The further ways to sample from it, where it was asked for them."""
        name = f"{self.arm}_{self.budget}_{self.seed}"
        return [line_of(name, row) for row in self.rows if row.part == TEST_TIME]

    def lines(self) -> list[dict]:
        """Of the CSV."""
        own = {name: getattr(self, name) for name in ("arm", "budget", "seed", "stages", "nfe")}
        signal = asdict(self.signal) if self.signal else {}
        return [{**own, **asdict(row), **signal} for row in self.rows]

    @classmethod
    def of(cls, lines: list[dict]) -> "Record":
        """Of a run's lines, as they are read."""
        first = lines[0]
        signal = Signal(*(first[name] for name in names(Signal)))
        return cls(
            first["arm"],
            first["budget"],
            first["seed"],
            first["stages"],
            first["nfe"],
            None if signal.sampled is None else signal,
            tuple(Row(**{name: line[name] for name in names(Row)}) for line in lines),
        )


def names(of: type) -> list[str]:
    return [field.name for field in fields(of)]


COLUMNS = ("arm", "budget", "seed", "stages", "nfe", *names(Row), *names(Signal))


def number(value: float | None) -> float:
    """NaN for what is not known."""
    return math.nan if value is None else value


def line_of(checkpoint: str, row: Row) -> Line:
    """What evaluate.py's table and plot show of a row."""
    less = row.difference, row.difference_low, row.difference_high
    return Line(
        checkpoint,
        row.split,
        row.sampler,
        row.reward,
        row.prompts,
        row.images,
        Figure(row.mean, number(row.low), number(row.high)),
        None if row.difference is None else Figure(*map(number, less)),
        row.diversity,
        number(row.evaluations),
        number(row.seconds),
    )


def file_of(study: ConfigDict) -> Path:
    return (REPOSITORY / study.report).with_name(f"{study.name}.csv")


def read(file: Path) -> list[Record]:
    """A file's records; none where it is not there."""
    if not file.exists():
        return []
    runs: dict[tuple, list[dict]] = {}
    for line in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
        typed = {name: value(name, text) for name, text in line.items()}
        runs.setdefault((typed["arm"], typed["budget"], typed["seed"]), []).append(typed)
    return [Record.of(lines) for lines in runs.values()]


def value(column: str, text: str) -> str | int | float | None:
    if not text:
        return None
    return text if column in WORDS else int(text) if column in WHOLE else float(text)


def keep(study: ConfigDict, records: list[Record]) -> None:
    """Write the file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval=None, lineterminator="\n")
    writer.writeheader()
    writer.writerows(line for record in records for line in record.lines())
    file_of(study).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file_of(study), text.getvalue())
