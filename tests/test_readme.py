"""What the README and the other pages print works as printed, and what they point to is there."""

import re
import shlex
import sys

import pytest

from rewards import REGISTRY
from srrl.assess.samplers import SAMPLERS
from srrl.config import REPOSITORY, load_config
from srrl.methods import METHODS
from tests.conftest import PRESET, small_run
from tests.slow.commands import run

# The history of what was measured and changed names what there was.
HISTORY = {"CHANGELOG.md", "LOG.md"}
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "config/prompts")
    for path in sorted((REPOSITORY / folder).glob("*.md"))
}
README = PAGES["README.md"]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
README_REWARD = next(block for block in BLOCKS if "score(" in block)


def commands() -> list[list[str]]:
    """Every command of the pages' bash blocks, once and without its comment, README's first."""
    texts = [README, *(text for page, text in PAGES.items() if page != "README.md")]
    blocks = [b for text in texts for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    every = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [list(command) for command in dict.fromkeys(every)]


TINY = {
    "train.sh": "config/stage_process.py:tiny",
    "train_xl.sh": "config/stage_process.py:tiny_xl",
    "train_rig.sh": "config/rig.py:tiny",
}


def test_every_training_command_has_a_valid_config():
    training = [c for c in commands() if c[:1] == ["bash"] and c[1] in TINY]
    assert len(training) >= 6
    for command in training:
        split = command.index("--") if "--" in command else len(command)
        load_config(command[2:split], default=TINY[command[1]], methods=[*METHODS])


@pytest.mark.parametrize("page", [p for p in PAGES if p.split("/")[-1] not in HISTORY])
def test_every_script_and_file_it_names_exists(page):
    for path in re.findall(r"(?<![\w/])(?:scripts|srrl|config|docs|tests)/[\w/.*]+\w", PAGES[page]):
        assert list(REPOSITORY.glob(path)), path


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize(
    ("page", "names"), [("docs/REWARDS.md", REGISTRY), ("docs/SAMPLING.md", SAMPLERS)]
)
def test_every_name_has_its_row(page, names):
    rows = re.findall(r"^\| `(\w+)` \|", PAGES[page], re.MULTILINE)
    assert sorted(rows) == sorted(names)


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


def test_every_line_that_troubleshooting_names_can_be_shown():
    said = (REPOSITORY / "tests" / "lines.csv").read_text(encoding="utf-8")
    tables = re.findall(r"^\| (.*?) \|", PAGES["docs/TROUBLESHOOTING.md"], re.MULTILINE)
    quoted = [text for symptom in tables for text in re.findall(r"`([^`]* [^`]*)`", symptom)]
    assert len(quoted) > 8
    for text in quoted:
        assert text in said, text


@pytest.mark.slow
def test_the_users_reward_trains_as_printed(tmp_path):
    assert len(README_REWARD.splitlines()) < 15
    (tmp_path / "my_reward.py").write_text(README_REWARD)
    command = next(c for c in commands() if "shapes" in " ".join(c) and "my_reward" in " ".join(c))
    models = next(a for a in command if "reward.models" in a)
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, 1), models]
    run(*command, PYTHONPATH=f"{REPOSITORY}:{tmp_path}")
    assert "reward/my_reward:Brightness/mean" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert_every_script_finds_it(tmp_path)


def assert_every_script_finds_it(folder):
    """As a user who is in the folder with the reward and the run, and has no PYTHONPATH."""
    scripts, reward, checkpoint = REPOSITORY / "scripts", "my_reward:Brightness", folder / "run"
    prompt = "a blue circle above a red square"
    for command in (
        ["sample.py", "--checkpoint", checkpoint, "--prompt", prompt, "--seeds", "0"],
        ["score.py", "outputs", "--rewards", reward],
        ["score.py", "outputs", "--checkpoint", checkpoint],
        [
            "evaluate.py",
            "--checkpoints",
            checkpoint,
            "--num-prompts",
            "1",
            "--images",
            "1",
            "--rewards",
            reward,
            "--samplers",
            "plain",
        ],
        [
            "evaluate.py",
            "--checkpoints",
            checkpoint,
            "--num-prompts",
            "1",
            "--images",
            "1",
            "--rewards",
            f"{folder / 'my_reward.py'}:Brightness",
            "--samplers",
            "plain",
        ],
    ):
        said = run(sys.executable, scripts / command[0], *command[1:], folder=folder).stdout
        assert "Brightness" in said
