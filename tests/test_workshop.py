"""What looks after the repository is right: lock, workflows, hooks, issue forms and Makefile."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from srrl.config import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["demo"]]
LOCK = [
    Requirement(line)
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
]
LOCKED = {canonicalize_name(r.name): str(r.specifier) for r in LOCK}
WORKFLOWS = sorted(REPOSITORY.glob(".github/workflows/*.yml"))
FORMS = sorted(REPOSITORY.glob(".github/ISSUE_TEMPLATE/*.yml"))
TARGETS = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
NAMED = re.compile(r"(?<![\w./-])(?:[\w.-]+/)*[\w-]+\.(?:lock|md|py|sh|toml|yml)\b")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps():
    """Each step of each workflow, by the workflow's name and its own number."""
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            for number, step in enumerate(job["steps"], 1):
                yield pytest.param(step, id=f"{path.stem}-{number}")


STEPS = [*steps()]
RUN = [param for param in STEPS if "run" in param.values[0]]
HOOKS = [
    hook for repo in read(REPOSITORY / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
]


@pytest.mark.parametrize("wanted", REQUIREMENTS)
def test_the_lock_agrees_with_the_pins(wanted):
    requirement = Requirement(wanted)
    assert LOCKED[canonicalize_name(requirement.name)] == str(requirement.specifier)


def test_the_lock_is_of_exact_versions_for_any_build_and_machine():
    assert all(re.fullmatch(r"==[^+*]+", version) for version in LOCKED.values())
    assert len(LOCKED) == len(LOCK)
    assert not [name for name in LOCKED if name == "srrl" or name.startswith(("nvidia", "triton"))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_only_ends_and_gives_way(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert workflow[True]  # "on", which YAML takes for a truth value
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 360


@pytest.mark.parametrize("step", STEPS)
def test_a_step_runs_a_command_or_an_action_of_a_major_version(step):
    assert "run" in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


@pytest.mark.parametrize("step", RUN)
def test_what_a_step_runs_is_bash_and_names_what_is_there(step):
    script = step["run"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "${{" not in script  # whose text bash would run, whatever it is
    assert all((REPOSITORY / name).is_file() for name in NAMED.findall(script)), script
    for name, test in re.findall(r"(\S+\.py)::(\w+)", script):
        assert f"def {test}(" in (REPOSITORY / name).read_text()
    assert set(re.findall(r"\bmake (\w+)", script)) <= {*TARGETS}


def test_without_its_pins_pyproject_asks_for_the_same_packages(tmp_path):
    """By the very step of the weekly workflow."""
    (step,) = (p.values[0] for p in RUN if p.values[0].get("name") == "loosen every pin")
    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    subprocess.run(["bash", "-c", step["run"]], cwd=tmp_path, check=True)
    loose = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert loose["dependencies"] == [Requirement(r).name for r in PROJECT["dependencies"]]
    assert loose["optional-dependencies"].keys() == EXTRAS.keys()
    assert "==" not in str(loose)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_what_is_there(hook):
    program, script, flag, module = hook["entry"].split()[:4]
    assert (program, flag, hook["language"]) == ("bash", "-m", "system")
    assert importlib.util.find_spec(module)
    assert all((REPOSITORY / name).is_file() for name in [script, *NAMED.findall(hook["entry"])])


def make(*arguments: str) -> str:
    """What make prints, also below another make."""
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.check_output(command, cwd=REPOSITORY, env=alone, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="without make")
def test_make_says_what_it_can_do_and_calls_what_is_there():
    assert [line.split()[1] for line in make().splitlines()] == TARGETS
    for target in TARGETS:
        told = make("--dry-run", target)
        subprocess.run(["bash", "-n"], input=told, text=True, check=True)
        assert all((REPOSITORY / name).is_file() for name in re.findall(r"bash (\S+\.sh)", told))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_github_asks_for(path):
    form = read(path)
    if path.stem == "config":
        assert form.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len({*ids}) == len(ids)
    assert all(
        field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"]
    )
    assert all((REPOSITORY / name).is_file() for name in NAMED.findall(path.read_text()))
