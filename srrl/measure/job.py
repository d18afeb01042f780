"""One part of a report: measurements that are written as they come, each guarded."""

import gc
import json
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass
class Job:
    """device: "cuda" or "cpu"; tiny: the embedded models instead of those at full size; folder: for
    whatever is written."""

    part: str
    device: str
    tiny: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def measure(self, name: str, function: Callable[[], Row | Iterable[Row]]) -> None:
        """Write the rows of `function` as they come, and why it failed if it does."""
        try:
            rows = function()
            for row in [rows] if isinstance(rows, dict) else rows:
                self.write(name, row)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:500]
            self.write(name, {"error": f"{type(error).__name__}: {text}"})
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def write(self, name: str, row: Row) -> None:
        line = json.dumps({"part": self.part, "name": name, **row})
        with open(self.folder / f"{self.part}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
