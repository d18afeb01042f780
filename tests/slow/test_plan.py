"""scripts/plan.py as a user calls it."""

import re
import shlex
import sys

import pytest

from srrl.config import REPOSITORY
from tests.conftest import small_run
from tests.slow.commands import run

pytestmark = pytest.mark.slow
PLAN = [sys.executable, "scripts/plan.py"]


def config(preset: str) -> str:
    return f"--config=config/stage_process.py:{preset}"


@pytest.mark.parametrize("preset", ["sd14", "sdxl"])
def test_the_published_models_on_24_gb_with_what_it_advises(preset):
    """The overrides that it prints make the run fit, and the document's table is its own."""
    first = run(*PLAN, config(preset), "--card", "4090").stdout
    assert "computed, nothing was run" in first
    fitting = next(line for line in first.splitlines() if line.startswith("at most fit"))
    assert ("with gradient checkpointing" in fitting) == (preset == "sdxl")
    assert all(int(n) > 0 for n in re.findall(r"batch (\d+)", fitting)) and "train.mic" in fitting
    if preset == "sdxl":
        assert "does not fit NVIDIA GeForce RTX 4090" in first
        advised = next(line for line in first.splitlines() if line.startswith("  --config."))
        second = run(*PLAN, config(preset), "--card", "4090", *shlex.split(advised)).stdout
        assert "\nfits NVIDIA GeForce RTX 4090" in second
    else:
        assert "\nfits NVIDIA GeForce RTX 4090" in first
    peak = float(re.search(r"the run .* ([\d.]+)\n", first)[1])
    costs = (REPOSITORY / "docs" / "COSTS.md").read_text()
    row = next(x for x in costs.splitlines() if x.startswith(f"| `{preset}` as it is"))
    assert f"**{peak:.1f}**" in row


def test_a_plan_of_the_embedded_model_and_of_all_cards():
    text = run(*PLAN, config("tiny"), "--card", "all", "--config.mixed_precision=bf16").stdout
    assert re.search(r"reflect +49,920", text) and text.count("as it is") >= 10
    assert "hours" not in run(*PLAN, config("tiny"), "--card", "cpu").stdout


def test_the_parts_of_rl_rig_and_a_pictures_bill():
    """Parameters as published; evaluations and calls of three rounds."""
    text = run(*PLAN, "--config=config/rig.py:sd14", "--card", "h100").stdout
    assert re.search(r"timbrooks/instruct-pix2pix +1,066,246,827 +1\.99", text)
    assert re.search(r"Qwen/Qwen2\.5-VL-7B-Instruct +8,292,166,656 +15\.4", text)
    assert re.search(r"\n  once +40 +1 ", text) and re.search(r"\n  actor +220 +7 ", text)
    assert "\nfits NVIDIA H100 80GB" in text
    tiny = run(*PLAN, "--config=config/rig.py:tiny", "--card", "cpu").stdout
    assert re.search(r"\n  actor +80 +7 ", tiny)
    for key in ("editor", "checker"):
        flag = f"--config.{key}.model=nobody/nothing"
        refused = run(*PLAN, "--config=config/rig.py:sd14", flag, check=2)
        assert "'nobody/nothing'" in refused.stderr and "known are" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--card", "voodoo2"], "known are b200"),
        (["--processes", "0"], "at least 1"),
        (["--share", "2"], "above 0"),
        (["--config.sample.steps=3"], "unknown config key"),
        (["--config.pretrained.model=nobody/nothing"], "its architecture is not known"),
    ],
)
def test_what_it_cannot_count_is_one_line(flags, said):
    result = run(*PLAN, config("sd14"), *flags, check=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_runs_start_says_it_in_one_line(tmp_path):
    result = run(
        sys.executable,
        "scripts/train.py",
        config("tiny"),
        *small_run(tmp_path, 1),
        "--config.plan=true",
    )
    line = next(x for x in result.stdout.splitlines() if x.startswith("plan:"))
    assert re.match(r"plan: [\d,]+ evaluations, [\d.]+ TFLOP \(.*\), peak memory 0\.\d+ GiB", line)
