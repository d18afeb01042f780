"""One part of a report: measurements that are written as they come, each guarded."""

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def on_alarm(number: int, frame: Any) -> None:
    raise TimeoutError("the part's time is up")


@dataclass
class Job:
    """device: "cuda" or "cpu"; tiny: the embedded models instead of those at full size; folder: for
    whatever is written; deadline: of time.monotonic(), at which the part stops."""

    part: str
    device: str
    tiny: bool
    folder: Path
    deadline: float

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def half(self) -> str:
        """The mixed_precision to measure in first."""
        return "bf16" if self.on_gpu else "no"

    def measure(self, name: str, function: Callable[[], Row | Iterable[Row]]) -> None:
        """Write the rows of `function` as they come; then why it failed, or that no time was left.

        It is interrupted at the deadline.
        """
        start = time.monotonic()
        if start >= self.deadline:
            self.write(name, {"skipped": "no time was left"})
            return
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self.deadline - start)
        try:
            rows = function()
            for row in [rows] if isinstance(rows, dict) else rows:
                self.write(name, {**row, "took": round(time.monotonic() - start, 1)})
        except Exception as error:
            at = [
                f"{Path(f.filename).name}:{f.lineno}"
                for f in traceback.extract_tb(error.__traceback__)
            ]
            text = " ".join(str(error).split())[:500]
            row = {"error": f"{type(error).__name__}: {text}", "at": " < ".join(at[:-5:-1])}
            traceback.print_exc()
            self.write(name, {**row, "took": round(time.monotonic() - start, 1)})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def write(self, name: str, row: Row) -> None:
        line = json.dumps({"part": self.part, "name": name, **row})
        with open(self.folder / f"{self.part}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
