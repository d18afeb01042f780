"""One part of a report: measurements that are written as they come, each guarded."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Job:
    """device: "cuda" or "cpu"; tiny: the embedded models instead of those at full size; folder: for
    whatever is written; deadline: of time.monotonic(), after which nothing new is begun."""

    part: str
    device: str
    tiny: bool
    folder: Path
    deadline: float

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.part}.jsonl"

    def measure(self, name: str, seconds: float, function: Callable[[], dict[str, Any]]) -> None:
        """Write what `function` returns as a row; or why it failed, or that no time was left.

        seconds: about how long it takes on a GPU.
        """
        start = time.monotonic()
        if self.on_gpu and start + seconds > self.deadline:
            self.write(name, {"skipped": f"no time left: it takes about {seconds:.0f} s"})
            return
        try:
            row = function()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:300]
            row = {
                "error": f"{type(error).__name__}: {text}",
                "at": f"{Path(last.filename).name}:{last.lineno}",
            }
            traceback.print_exc()
        self.write(name, {**row, "took": round(time.monotonic() - start, 1)})
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def write(self, name: str, row: dict[str, Any]) -> None:
        line = json.dumps({"part": self.part, "name": name, **row})
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)
