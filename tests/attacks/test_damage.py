"""Checkpoints that are not what was written: none is trained on, and the run says so in a line."""

import errno
import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from srrl.config import flatten, load_config
from srrl.errors import UserError
from srrl.run import manifest
from srrl.run.folder import stages
from srrl.run.recovery import choose, set_aside
from tests.conftest import PRESET, small_run
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
STAGES = 3
QUICK = ["--config.eval.every=0", "--config.pictures.every=99"]


def command(folder: Path, *extra: str) -> list[str]:
    return ["scripts/train.py", PRESET, *small_run(folder, STAGES), *extra]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run, with two checkpoints to go on from."""
    folder = tmp_path_factory.mktemp("whole")
    run(sys.executable, *command(folder, *QUICK))
    return folder / "run"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Another run's checkpoints, of another seed."""
    folder = tmp_path_factory.mktemp("foreign")
    run(sys.executable, *command(folder, *QUICK, "--config.seed=7"))
    return folder / "run" / "checkpoints"


def damage(folder: Path, foreign: Path, chance: random.Random) -> str:
    """Do one of the things that happen to a checkpoint, to one of its files; says which."""
    kind = chance.choice(["cut", "flipped", "extended", "missing", "foreign", "swapped", "emptied"])
    file = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    data = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "flipped":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
    elif kind == "extended":
        file.write_bytes(data + chance.randbytes(chance.randint(1, 4096)))
    elif kind == "missing":
        file.unlink()
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "swapped":  # one file of another run
        shutil.copy(foreign / folder.name / file.relative_to(folder), file)
    else:
        shutil.rmtree(folder)
        shutil.copytree(foreign / folder.name, folder)
    return f"{kind} {folder.name}/{file.name}"


def attacks(count: int, seed: int):
    return [random.Random(f"{seed} {number}") for number in range(count)]


@pytest.mark.parametrize(
    "count", [40, pytest.param(200, marks=pytest.mark.attack)], ids=["slice", "all"]
)
def test_a_damaged_checkpoint_is_detected_or_harmless(count, whole, foreign, tmp_path):
    """One or both of the two: what is chosen has every byte that was written, or all is refused."""
    config = load_config(command(tmp_path)[1:])
    before = {folder.name: contents(folder) for folder in stages(whole)}
    told = {"harmless": 0, "back": 0, "refused": 0}
    for chance in attacks(count, seed=1):
        copied = tmp_path / "run"
        shutil.copytree(whole, copied)
        done = [
            damage(folder, foreign, chance)
            for folder in stages(copied)[: chance.choice([1, 1, 1, 2])]
        ]
        try:
            found = choose(copied, config)
        except UserError as error:
            assert len(done) == 2 and "no checkpoint to go on from" in str(error), (done, error)
            assert "\n" not in str(error)
            told["refused"] += 1
        else:
            assert contents(found.folder) == before[found.folder.name], done
            told["back" if found.faults else "harmless"] += 1
        shutil.rmtree(copied)
    print(told)
    assert told["back"] > count / 2 and told["refused"] > 0


def test_a_run_goes_back_to_the_one_before_and_ends_as_if_nothing_had_been(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    newest, before = stages(tmp_path / "run")[:2]
    file = newest / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    stopped = run(
        sys.executable, *command(tmp_path, *QUICK, "--config.checkpoint.damaged=stop"), check=2
    )
    (line,) = stopped.stderr.splitlines()
    assert "stage_0003: optimizer.pt has " in line and "go on from stage_0002 by" in line
    said = run(sys.executable, *command(tmp_path, *QUICK)).stdout
    assert "warning: stage_0003 cannot be trusted (optimizer.pt has" in said
    assert f"resuming {tmp_path / 'run'} after 2 stages" in said
    assert (newest.parent / "stage_0003.damaged").is_dir() and before.is_dir()
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert logged(tmp_path / "run", name) == logged(whole, name)
    one, other = lora(tmp_path / "run", STAGES), lora(whole, STAGES)
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def test_no_run_begins_again_over_logs_that_it_cannot_account_for(whole, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(whole, copied)
    for folder in stages(copied):
        (folder / manifest.MANIFEST).unlink(missing_ok=True)  # as by a version without
    refused = run(sys.executable, *command(tmp_path, *QUICK), check=2)
    assert "stage_0003: no manifest.json: incomplete, or of an older version" in refused.stderr
    shutil.rmtree(copied / "checkpoints")
    refused = run(sys.executable, *command(tmp_path, *QUICK), check=2)
    (line,) = refused.stderr.splitlines()
    assert "metrics.jsonl tells of stages, and there is no checkpoint" in line
    assert "delete the folder to start again" in line
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (copied / name).read_bytes() == (whole / name).read_bytes()
    (copied / "metrics.jsonl").unlink()
    (copied / "samples.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"samples\.jsonl tells of stages"):
        choose(copied, load_config(command(tmp_path, *QUICK)[1:]))
    (copied / "samples.jsonl").write_text("")
    (copied / "eval.jsonl").write_text('{"stage": 0}\n{"sta')  # killed before the first save
    assert choose(copied, load_config(command(tmp_path, *QUICK)[1:])).folder is None


def test_a_disk_that_cannot_be_read_is_no_damage(whole, tmp_path, monkeypatch):
    copied = tmp_path / "run"
    shutil.copytree(whole, copied)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error", "optimizer.pt")

    monkeypatch.setattr(manifest, "described", broken)
    with pytest.raises(OSError, match="input/output error"):
        choose(copied, load_config(command(tmp_path, *QUICK)[1:]))


def test_what_was_set_aside_before_is_kept(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / "checkpoints" / "stage_0002"
        folder.mkdir(parents=True)
        (folder / "file").write_text(name)
        set_aside(folder)
    assert not stages(tmp_path)
    kept = sorted((tmp_path / "checkpoints").glob("*.damaged*/file"))
    assert [file.read_text() for file in kept] == ["one", "two"]


def test_the_config_that_a_checkpoint_was_made_with_is_the_runs(whole):
    saved = json.loads((whole / "config.json").read_text())
    for folder in stages(whole)[:2]:
        assert manifest.check(folder)["config"] == saved
    given = load_config(command(whole.parent)[1:])
    assert saved["seed"] == flatten(given)["seed"]
