"""Training on a judge behind HTTP that fails: the run goes on, or stops and resumes to its end."""

import sys

import pytest
import torch

from tests.conftest import PRESET, small_run
from tests.rewards.server import serving
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
STAGES = 2


def train(folder, url: str, check: int = 0, timeout: float = 0.5):
    options = f'{{"api": {{"url": "{url}", "timeout": {timeout}, "attempts": 5}}}}'
    return run(
        sys.executable,
        "scripts/train.py",
        PRESET,
        *small_run(folder, STAGES),
        '--config.reward.models={"api": 1.0}',
        f"--config.reward.options={options}",
        check=check,
    )


def answers(lines: list[dict]) -> tuple[list[int], int]:
    """Take the requests out of metrics.jsonl's lines: those answered, by stage, and all that
    failed."""
    failed = [line.pop("reward/api/failures") for line in lines]
    calls = [line.pop("reward/api/calls") for line in lines]
    return [c - f for c, f in zip(calls, failed, strict=True)], sum(failed)


def test_faults_and_a_death_lead_to_the_same_end(tmp_path):
    with serving() as server:
        train(tmp_path / "calm", server.url, timeout=60)  # nothing is late, however busy
        port = server.server_address[1]
    faults = [f for kind in ("503", "late", "garbage", "hang up", "429") for f in (kind, "", "")]
    with serving([*faults, *faults, "die"], port) as server:
        result = train(tmp_path / "rough", server.url, check=2)
        assert server.faulted == 11
    *tries, line = result.stderr.strip().splitlines()
    assert tries and not [t for t in tries if not t.startswith("reward 'api': attempt ")]
    assert "attempt 2 of 5" in tries[0]
    assert "reward 'api'" in line and "failed 5 times" in line and "the same command again" in line
    with serving(["503"], port) as server:
        train(tmp_path / "rough", server.url)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        rough, calm = (logged(tmp_path / run / "run", name) for run in ("rough", "calm"))
        if name == "metrics.jsonl":
            (again, *after), failed = answers(rough)
            (first, *rest), never = answers(calm)
            assert after == rest and failed and not never
            assert 0 < again < first  # what it evaluated before its first stage is known
        assert rough == calm
    one, other = (lora(tmp_path / name / "run", STAGES) for name in ("rough", "calm"))
    assert all(torch.equal(one[k], other[k]) for k in other)
