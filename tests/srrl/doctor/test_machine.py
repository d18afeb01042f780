"""What the doctor says of a machine, each fault made for real."""

import pytest
import torch

import srrl.rig.training
import srrl.trainer  # noqa: F401  before there is a torchvision that cannot be imported
from srrl.config import load_config
from srrl.doctor import machine
from srrl.doctor.rows import FAIL, OK, WARN, Row, Trouble, answer, page
from srrl.surroundings import LEFT_OVER, MEET_S, RANKS, SIZES
from tests.conftest import PRESET


def test_a_package_of_another_version_has_a_row_of_its_own(tmp_path, monkeypatch):
    wanted = len(machine.pins())
    info = tmp_path / "peft-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    before = [row for row in machine.packages() if "peft" in row.found]
    monkeypatch.syspath_prepend(tmp_path)
    said = {row.found: row.state for row in machine.packages()}
    assert not before
    assert said[f"peft 0.0.1, not {machine.pins()['peft']} as pinned"] == WARN
    assert f"{wanted - 1} of {wanted} packages as pinned" in said


def test_a_package_that_is_missing_fails(tmp_path, monkeypatch):
    wanted = '["no-such-package==1.5", "bounded>=2"]'
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {wanted}\n")
    monkeypatch.setattr(machine, "PROJECT", tmp_path / "pyproject.toml")
    missing, counted, *_ = machine.packages()
    assert missing[:3] == ("package", "no-such-package is not installed (1.5 is pinned)", FAIL)
    assert "pip install" in missing.remedy
    assert counted.found == "0 of 1 packages as pinned"


def test_a_torchvision_of_another_torch_is_named(tmp_path, monkeypatch):
    assert [row.state for row in machine.imports()] == [OK]
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("no operator nms")')
    monkeypatch.syspath_prepend(tmp_path)
    row = next(machine.imports())
    assert row.state == FAIL and "RuntimeError: no operator nms" in row.found
    assert "pip uninstall torchvision" in row.remedy


def test_what_another_launch_has_left_is_told(monkeypatch):
    for name in (*SIZES, *RANKS, MEET_S):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [row.state for row in machine.environment()] == [OK]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    (row,) = machine.environment()
    assert row.found == "RANK=1, WORLD_SIZE=4" and row.state == WARN
    assert "unset RANK, WORLD_SIZE" in row.remedy
    monkeypatch.setenv(MEET_S, "soon")
    assert [row.state for row in machine.environment()] == [WARN, FAIL]


def test_the_devices_own_precisions_run():
    assert {row.state for row in machine.precision(load_config([PRESET]), True)} == {OK}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has half precision")
def test_half_precision_needs_a_gpu():
    half = load_config([PRESET, "--config.mixed_precision=fp16"])
    single, refused = machine.precision(half, True)
    assert single.state == OK and refused.state == FAIL
    assert "--config.mixed_precision=no" in refused.remedy


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_block_of_a_unet_runs_forward_and_backward(precision):
    assert machine.finite("cpu", precision)


@pytest.mark.slow
def test_processes_that_cannot_meet_are_told(monkeypatch):
    for name in filter(LEFT_OVER.fullmatch, (*SIZES, *RANKS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "no_such_interface")
    row = next(machine.processes())
    assert row.state != OK and "cannot meet" in row.found and "SOCKET_IFNAME" in row.remedy


def test_shared_memory_matters_to_several_gpus(tmp_path):
    assert machine.shared_memory(1, str(tmp_path / "nowhere")).state == OK
    lacking = machine.shared_memory(2, str(tmp_path / "nowhere"))
    assert lacking.state == WARN and "no such file" in lacking.found


def test_a_command_that_is_late_or_fails_is_one_line():
    with pytest.raises(Trouble, match=r"no answer within 0\.2 s"):
        answer(["sleep", "1000"], 0.2)
    with pytest.raises(Trouble, match=r"^why$"):
        answer(["sh", "-c", "echo first >&2; echo why >&2; exit 3"], 60)
    with pytest.raises(Trouble, match="ended by SIGSEGV"):
        answer(["sh", "-c", "kill -SEGV $$"], 60)
    assert answer(["echo", "yes"], 60) == "yes\n"


def test_the_page_has_each_remedy_once_and_in_order():
    rows = [Row("a", "x", WARN, "one"), Row("b", "y"), Row("c", "z", FAIL, "two")]
    table, _, remedies = page([*rows, rows[0]]).partition("\n\n")
    assert table.splitlines()[0].split() == ["check", "found", "state"]
    assert remedies.splitlines() == ["warn a: one", "fail c: two"]
    assert "\n\n" not in page(rows[1:2])
