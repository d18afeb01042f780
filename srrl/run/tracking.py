"""The run's folder and logs, trackers, and progress with the time left."""

import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor

from srrl.config import flatten
from srrl.errors import UserError, writing
from srrl.run import pictures
from srrl.run.best import best, latest
from srrl.run.checkpoint import cut_log, write_atomic
from srrl.run.curves import Panel, curves
from srrl.run.folder import LOGS, read_lines
from srrl.run.image_statistics import Evaluated, drifted
from srrl.run.statistics import by_prompt, format_difference

SERVER_S = 5  # for wandb's server to answer
DRAWING = 20  # times as long as it took to draw the curves they are not drawn again


class Tracker:
    """Writes a run's logs and pictures on the main process; does nothing on the others.

    metrics.jsonl and eval.jsonl are always written, and what accelerate tracks besides. Of a run
    that is a part of another, `part` is its name and `before` the stages before it, for the latter.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, part: str = "", before: int = 0):
        self.folder, self.accelerator = folder, accelerator
        self.prefix, self.before = f"{part}/" if part else "", before
        self.undrawn: set[str] = set()
        self.draw_again = 0.0
        self.due: Sequence[Panel] | None = None  # what the curves are to be drawn with
        self.active = accelerator.is_main_process

    def start(self, config: Any, stage: int) -> None:
        """Write config.json and cut the logs back to the `stage` stages done (-1: a new run)."""
        if self.active:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / "config.json", json.dumps(flatten(config), indent=1) + "\n")
            for name in LOGS:
                bad = cut_log(self.folder / name, "stage", below=stage + 1)
                if bad:
                    self.say(f"warning: {self.folder / name}: {bad} unreadable lines are left out")

    def metrics(self, values: dict[str, Any]) -> None:
        """Append a stage's line to metrics.jsonl and send it to the trackers."""
        if self.active:
            self._append("metrics.jsonl", values)
            self._send(lambda tracker: self._log(tracker, values, values["stage"]))

    def evaluation(self, line: dict[str, Any]) -> None:
        """Append an evaluation's line to eval.jsonl and send its mean to the trackers."""
        if self.active:
            self._append("eval.jsonl", line)
            reflected = f"/K{line['rounds']}" if line["rounds"] > 1 else ""
            name = f"eval/{line['split']}/{line['reward']}{reflected}"
            self._send(lambda tracker: self._log(tracker, {name: line["mean"]}, line["stage"]))

    def samples(
        self, stage: int, records: list[dict[str, Any]], images: Tensor | None = None
    ) -> None:
        """Append a stage's records to samples.jsonl; save their images uint8 [n, 3, H, W], if
        given, as images/stage_NNNN/PROMPT_BRANCH_ROUND.png."""
        if not self.active:
            return
        named = [{"stage": stage, **record} for record in records]
        if images is not None:
            folder = self.folder / "images" / f"stage_{stage:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            for line, image in zip(named, images, strict=True):
                file = folder / f"{line['slot']:04d}_{line['branch']:02d}_{line['round']:02d}.png"
                with writing(file):
                    pictures.to_pil(image).save(file)
                line["image"] = str(file.relative_to(self.folder))
        self._append("samples.jsonl", *named)

    def page(self, stage: int, rows: list[pictures.Row], heading: str) -> None:
        """Write samples/stage_NNNN.png and send it to the trackers."""
        if not self.active:
            return
        file = self.folder / "samples" / f"stage_{stage:04d}.png"
        with self.drawn(file, "a stage's page"):
            page = pictures.sheet(rows, heading)
            file.parent.mkdir(parents=True, exist_ok=True)
            page.save(file)

            def show(tracker: GeneralTracker) -> None:
                name, step = f"{self.prefix}samples", stage + self.before
                if tracker.name == "wandb":
                    tracker.log_images({name: [page]}, step=step)
                else:
                    pixels = np.asarray(page)[None]
                    tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

            self._send(show)

    def fixed(self, stage: int, split: str, rounds: int, found: Evaluated) -> None:
        """Keep an evaluation's pictures in samples/fixed/, and send how all of them look to the
        trackers."""
        if self.active:
            name = f"eval/{split}/pictures{f'/K{rounds}' if rounds > 1 else ''}"
            values = {f"{name}/{measure}": mean for measure, (mean, _) in found.pictures.items()}
            self._send(lambda tracker: self._log(tracker, values, stage))
            file = self.folder / "samples/fixed" / f"{split}_K{rounds}" / f"stage_{stage:04d}.png"
            with self.drawn(file, "an evaluation's pictures"):
                pictures.save_fixed(found.shown, file)

    def drift(self) -> None:
        """Warn where the last evaluation's pictures no longer look like the first one's."""
        if self.active and (said := drifted(read_lines(self.folder / "eval.jsonl"))):
            self.say(f"  warning: {said}")

    def progress(self, rounds: int, shown: dict[str, dict[int, str]]) -> None:
        """Draw progress_KN.png: prompts (place among the judged ones, and text) by stages."""
        if self.active:
            file = self.folder / f"progress_K{rounds}.png"
            with self.drawn(file, file.name):
                page = pictures.progress(self.folder, rounds, shown)
                if page:
                    page.save(file)

    def curves(self, panels: Sequence[Panel] = (), last: bool = False) -> None:
        """Draw curves.png, with a method's own panels; later where it has just been drawn, at the
        last stage and the run's end (`summary`) at the latest."""
        if self.active:
            self.due = panels
            if last or time.monotonic() >= self.draw_again:
                self._curves()

    def _curves(self) -> None:
        if self.due is None:
            return
        file, begun = self.folder / "curves.png", time.monotonic()
        with self.drawn(file, file.name):
            curves(self.folder, self.due)
        gc.collect()  # a figure's parts hold each other: 4 MB each time, until someone looks
        ended, self.due = time.monotonic(), None
        self.draw_again = ended + DRAWING * (ended - begun)

    @contextmanager
    def drawn(self, file: Path, what: str) -> Iterator[None]:
        """What cannot be drawn is said once, and the run goes on without it; a disk's error ends it
        with the file's name."""
        try:
            with writing(file):
                yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                raise
            if what not in self.undrawn:
                self.undrawn.add(what)
                reason = " ".join(str(error).split())[:160]
                named = f"{type(error).__name__}: {reason}"
                self.say(f"warning: {what} cannot be drawn ({named}): the run goes on without")

    def stage(
        self, stage: int, heading: str, metrics: dict[str, float], seconds: float, eta: str
    ) -> None:
        """Say how a stage went: what it drew, what is watched, how far it has moved; and which of
        its rewards could not tell the images of any prompt apart."""
        if not self.active:
            return
        watched = latest(self.folder, stage)
        norm = f"gradient {metrics['grad_norm']:.2g}" if "grad_norm" in metrics else ""
        self.say(
            "  ".join(filter(None, [heading, watched, norm, f"{seconds:.0f} s", f"ETA {eta}"]))
        )
        tied = [key for key, share in metrics.items() if key.endswith("/tied") and share == 1]
        for key in tied:
            name = key.removeprefix("reward/").removesuffix("/tied")
            self.say(
                f"  warning: {name!r} scored all images of each prompt alike: it taught nothing"
            )
        if metrics["selected"] and metrics.get("grad_norm") == 0 and not tied:
            self.say(
                "  warning: no prompt had another score to be compared with (branch.count, "
                "reward.history): the stage taught nothing"
            )

    def summary(self) -> None:
        """Say how much the rewards rose from the first evaluation to the last, paired by prompt."""
        if self.active:
            self._curves()
            with self.drawn(self.folder, "the summary"):
                self._summary()

    def _summary(self) -> None:
        evaluations = read_lines(self.folder / "eval.jsonl")
        kinds: dict[tuple, list[dict]] = {}
        for e in evaluations:
            kinds.setdefault((e["split"], e["reward"], e["rounds"]), []).append(e)
        for (split, reward, rounds), lines in kinds.items():
            same = [judged_images(e) == judged_images(lines[-1]) for e in lines]
            lines = lines[same.index(True) :]  # those before eval.* changed do not pair
            first, last = (by_prompt(e["scores"], e["seeds"]) for e in (lines[0], lines[-1]))
            self.say(
                f"{reward} on {split} prompts, K {rounds}, stage {lines[0]['stage']} to "
                f"{lines[-1]['stage']}: "
                f"{lines[0]['mean']:.3f} to {lines[-1]['mean']:.3f}, paired "
                f"{format_difference(first, last)} "
                f"(95%, n {len(last)} prompts x {lines[-1]['seeds']} seeds)"
            )
        if found := best(self.folder):
            self.say(f"best {found} stages: --checkpoint {self.folder}:best")
        left = ("curves.png", "progress_K*.png", "samples", "checkpoints")
        there = ", ".join(name for name in left if any(self.folder.glob(name)))
        self.say(f"wrote {self.folder}: {there}, logs")

    def say(self, text: str) -> None:
        if self.active:
            print(text, flush=True)

    def finish(self) -> None:
        """Let the trackers end, and accelerate. What fails now fails a run that has succeeded: it
        is said, and the run has succeeded."""
        self._send(lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()
        try:
            self.accelerator.end_training()
        except Exception as error:
            self.say(f"warning: after the last stage: {type(error).__name__}: {error}")

    def _send(self, send: Callable[[GeneralTracker], None]) -> None:
        """Do it with every tracker. The run goes on without one that fails."""
        for tracker in list(self.accelerator.trackers):
            try:
                send(tracker)
            except Exception as error:
                self.accelerator.trackers.remove(tracker)
                self.say(folder_only(tracker.name, error))

    def _log(self, tracker: GeneralTracker, values: dict[str, Any], stage: int) -> None:
        named = {self.prefix + key: value for key, value in values.items()}
        tracker.log(named, step=stage + self.before)

    def _append(self, name: str, *lines: dict[str, Any]) -> None:
        path = self.folder / name
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write("".join(to_json(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def check_wandb() -> str:
    """Raise UserError where nobody is logged in to wandb, or its server is away; returns the mode,
    or the server."""
    import requests
    import wandb

    known = wandb.setup().settings
    if known.mode in ("offline", "dryrun", "disabled"):
        return known.mode
    if not wandb.login(prompt=False, verify=False):
        raise UserError("not logged in to wandb")
    try:
        requests.head(known.base_url, timeout=SERVER_S)
    except requests.exceptions.SSLError:
        pass  # wandb may know certificates of its own
    except requests.RequestException:
        raise UserError(f"wandb's server {known.base_url} does not answer") from None
    return known.base_url


def folder_only(tracker: str, error: Exception) -> str:
    """What is said of a tracker that cannot be logged to."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if not isinstance(error, UserError):
        reason = f"{tracker} failed ({reason})"
    return f"{reason}: logging to the run's folder only"


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON, which has no NaN and no infinity: such numbers become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(of_key) for key, of_key in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def judged_images(line: dict[str, Any]) -> tuple:
    """Which pictures a line of eval.jsonl is about."""
    return line["n"], line["seeds"], line["first_seed"]


class Clock:
    """Predicts the time left from units of work done and to do, both known beforehand."""

    def __init__(self, remaining: float):
        self.remaining, self.done, self.start = remaining, 0.0, time.monotonic()

    def advance(self, units: float, planned: float | None = None) -> None:
        """Count work done; `planned` is what was expected of it where that differs."""
        self.done += units
        self.remaining = max(0.0, self.remaining - (units if planned is None else planned))

    def eta(self) -> str:
        """The time left, like "4:05" (minutes and seconds) or "2:10:00"."""
        elapsed = time.monotonic() - self.start
        seconds = int(elapsed * self.remaining / self.done) if self.done else 0
        hours, minutes = seconds // 3600, seconds // 60 % 60
        tail = f"{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
        return f"{hours}:{tail}" if hours else tail


def mean_text(values: dict[str, Any]) -> str:
    """The rewards' means of a metrics line, like "shapes 0.412"."""
    means = {k.removeprefix("reward/"): v for k, v in values.items() if k.startswith("reward/")}
    named = {k.removesuffix("/mean"): v for k, v in means.items() if k.endswith("/mean")}
    return "  ".join(f"{name} {value:.3f}" for name, value in named.items())
