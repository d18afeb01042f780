"""`bash train_rig.sh`: both phases of Reflection-GRPO; killed, doubled, refused."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.slow.commands import flat, logged, run
from tests.srrl.models.test_instruct import save_editor

pytestmark = pytest.mark.slow
RIG = "--config=config/rig.py:tiny"
PHASES = ("actor", "editor")
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def small(folder: Path, *extra: str) -> list[str]:
    return [
        f"--config.output_dir={folder}",
        "--config.stages.total=2",
        "--config.sample.batch_size=8",
        "--config.phase.actor.group=4",
        "--config.phase.editor.group=4",
        "--config.phase.editor.rounds=1",
        "--config.train.need_gain=false",
        "--config.train.trajectories_per_update=16",
        "--config.eval.every=2",
        "--config.eval.num_prompts=4",
        "--config.eval.seeds=1",
        "--config.eval.rounds=[1]",
        "--config.pictures.every=2",
        *extra,
    ]


def weights(folder: Path, phase: str, stage: int = 2) -> dict[str, torch.Tensor]:
    """A phase's LoRA after so many stages."""
    where = folder / "rig_tiny" / phase / "checkpoints" / f"stage_{stage:04d}"
    return load_file(where / FILES[PHASES.index(phase)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rig")
    said = run("bash", "train_rig.sh", *small(folder), OMP_NUM_THREADS="1").stdout
    assert "no GPU found" in said or torch.cuda.is_available()
    assert "phases  actor, then editor" in said and "ETA" in said
    return folder


def test_both_phases_leave_what_the_readme_promises(undisturbed):
    for phase in PHASES:
        run_folder = undisturbed / "rig_tiny" / phase
        metrics = logged(run_folder, "metrics.jsonl")
        assert [line["stage"] for line in metrics] == [1, 2]
        assert all(line["ratio/first_max_dev"] < 1e-4 for line in metrics)
        assert sum(line["selected"] for line in metrics) > 0
        evals = logged(run_folder, "eval.jsonl")
        assert {(e["stage"], e["split"], e["reward"]) for e in evals} == {
            (stage, split, reward)
            for stage in (0, 2)
            for split in ("train", "heldout")
            for reward in ("checker", "exact", "judge")
        }
        for picture in ("curves.png", "progress_K1.png", "samples/stage_0001.png"):
            assert Image.open(run_folder / picture).width > 200
        before, after = (flat(weights(undisturbed, phase, stage)) for stage in (0, 2))
        assert (before != after).any()
        state = run_folder / "checkpoints" / "stage_0002" / "trainer_state.json"
        history = json.loads(state.read_text())["history"]
        assert [line["stage"] for line in history["exact"]] == [0, 2]
    saved = json.loads((undisturbed / "rig_tiny" / "editor" / "config.json").read_text())
    assert saved["run_name"] == "editor" and saved["stages.total"] == 2

    again = run(sys.executable, "scripts/train.py", RIG, *small(undisturbed)).stdout
    assert again.count("resuming") == 2 and "stage 1/2" not in again

    lora = [f"--config.{phase}.lora={undisturbed / 'rig_tiny' / phase}" for phase in PHASES]
    prompt = ["--prompt", "a red circle left of a blue square", "--images", "2"]
    out = ["--out", undisturbed / "drawn"]
    run(sys.executable, "scripts/rig.py", "draw", *prompt, *lora, *out)
    assert Image.open(undisturbed / "drawn" / "strips.png").width > 128


@pytest.mark.parametrize(("where", "count"), [("words", 3), ("save", 5)])
def test_killed_and_resumed_it_ends_like_one_never_killed(undisturbed, tmp_path, where, count):
    flags = [RIG, *small(tmp_path)]
    kill = (sys.executable, "tests/slow/kill_at.py", where, count)
    killed = run(*kill, *flags, check=None, OMP_NUM_THREADS="1")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    run(sys.executable, "scripts/train.py", *flags, OMP_NUM_THREADS="1")
    for phase in PHASES:
        for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
            ours, theirs = (logged(f / "rig_tiny" / phase, name) for f in (tmp_path, undisturbed))
            assert ours == theirs, (phase, name)
        one, other = weights(tmp_path, phase), weights(undisturbed, phase)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_two_processes_give_what_one_gives(undisturbed, tmp_path):
    """The same words, pictures, verdicts and selections; weights but for the order of sums."""
    two = ["--", "--num_processes", "2"]
    said = run("bash", "train_rig.sh", *small(tmp_path), *two, OMP_NUM_THREADS="1").stdout
    assert "2 processes" in said
    for phase in PHASES:
        ours, theirs = (f / "rig_tiny" / phase for f in (undisturbed, tmp_path))
        for one, other in zip(*(logged(f, "samples.jsonl") for f in (ours, theirs)), strict=True):
            assert one["edit"] == other["edit"] and one["selected"] == other["selected"]
            assert one["checker"] == pytest.approx(other["checker"], abs=1e-6)
        for one, other in zip(*(logged(f, "metrics.jsonl") for f in (ours, theirs)), strict=True):
            assert one.keys() == other.keys()
            for key in ("states", "selected", "vlm_calls", "reward/checker/mean", "form"):
                assert one[key] == pytest.approx(other[key], abs=1e-4), key
        ours, theirs = (flat(weights(f, phase)) for f in (undisturbed, tmp_path))
        assert (ours - theirs).norm() <= 1e-4 * ours.norm()


def test_an_sdxl_editor_is_trained(tmp_path):
    """InstructPix2Pix for SDXL and Qwen2.5-VL, through the loading of real models."""
    editor = save_editor("sdxl", tmp_path / "editor")
    given = ["--config.pretrained.model=srrl/shapes/tiny_sdxl", f"--config.editor.model={editor}"]
    given += [
        "--config.stages.total=1",
        "--config.eval.every=0",
        "--config.editor.image_guidance=1.5",
    ]
    run(sys.executable, "scripts/train.py", RIG, *small(tmp_path), *given)
    for phase in PHASES:
        line = logged(tmp_path / "rig_tiny" / phase, "metrics.jsonl")[0]
        assert line["updates"] > 0 and line["ratio/first_max_dev"] < 1e-4
        before, after = (flat(weights(tmp_path, phase, stage)) for stage in (0, 1))
        assert (before != after).any()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--config.phase.actor.group=1"],
            "config.phase.actor.group=1 is out of range: at least 2",
        ),
        (["--config.phase.actor.gruop=4"], "did you mean 'phase.actor.group'?"),
        (["--config.prompts.train=/nowhere.json"], "/nowhere.json"),
        (["--config.actor.lora=/nowhere"], "config.actor.lora='/nowhere': no such folder"),
        (["--config.editor.lora=/nowhere"], "config.editor.lora='/nowhere': no such folder"),
        (["--config.editor.model=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(flags, said, tmp_path):
    result = run(sys.executable, "scripts/train.py", RIG, *small(tmp_path), *flags, check=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_other_commands_say_what_a_phase_is_for(undisturbed, tmp_path):
    given = ["--checkpoint", undisturbed / "rig_tiny" / "editor", "--prompts", "a red circle"]
    result = run(sys.executable, "scripts/sample.py", *given, "--out", tmp_path, check=2)
    assert "a run of the method 'rig', not SRRL's: scripts/rig.py draws with" in result.stderr
