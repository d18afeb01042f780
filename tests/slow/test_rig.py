"""scripts/rig.py: strips, a table that survives a kill, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from srrl.config import REPOSITORY
from srrl.run.folder import read_lines
from tests.conftest import PROMPTS
from tests.slow.commands import run

pytestmark = pytest.mark.slow
RIG = [sys.executable, "scripts/rig.py"]
SMALL = [
    *RIG,
    "evaluate",
    "--num-prompts",
    "5",
    "--config.evaluate.images=2",
    "--config.evaluate.batch_size=3",
    '--config.evaluate.ways=["once", "again", "actor", "expert"]',
    "--config.loop.rounds=1",
]


def test_draw_writes_a_strip_for_each_picture(tmp_path):
    given = ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--images", 2]
    said = run(*RIG, "draw", *given, "--out", tmp_path).stdout
    assert "4/4 samples  ETA 0:00" in said and "in the one that is kept" in said
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert [s["prompt"] for s in samples] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    for i, sample in enumerate(samples):
        width = Image.open(tmp_path / f"strip_{i:03d}.png").width
        assert width > 128 * len(sample["steps"])
        assert Image.open(tmp_path / sample["image"]).size == (32, 32)
        for step in sample["steps"]:
            assert set(step["checked"]) == set(samples[i]["steps"][0]["checked"])
        assert sample["evaluations"] >= 20 and sample["vlm_tokens"] > 0
    assert Image.open(tmp_path / "strips.png").height > 4 * 128

    rows = [
        {
            "items": [
                {"item_id": 0, "label": "circle", "attributes": ["red"]},
                {"item_id": 1, "label": "hexagon", "attributes": ["blue"]},
            ],
            "relations": [{"item1": 0, "relation": "left of", "item2": 1}],
        }
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    refused = run(*RIG, "draw", "--prompts-file", tmp_path / "rows.json", check=2)
    assert "not a prompt of the shapes world: 'red circle left of blue hexagon'" in refused.stderr


def table(folder) -> list[dict]:
    lines = json.loads((folder / "table.json").read_text())
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def batches(folder) -> Counter:
    """The pictures of each batch that are written; the second ones begin at the 77th prompt."""
    lines = read_lines(folder / "pictures.jsonl")
    return Counter((line["way"], line["image"], line["number"] >= 76) for line in lines)


def test_killed_and_started_again_it_gives_the_same_table(tmp_path):
    said = run(*SMALL, "--out", tmp_path / "whole").stdout
    assert "4 ways x 5 prompts x 2 pictures: 16 batches, 0 done" in said and "ETA" in said
    process = subprocess.Popen(
        [*SMALL, "--out", tmp_path / "killed"],
        cwd=REPOSITORY,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("expert: picture 1, prompts 1 on"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    whole, killed = batches(tmp_path / "whole"), batches(tmp_path / "killed")
    done = sum(killed[batch] == pictures for batch, pictures in whole.items())
    with open(tmp_path / "killed" / "pictures.jsonl", "a") as file:
        file.write('{"key": "torn')
    said = run(*SMALL, "--out", tmp_path / "killed").stdout
    assert 4 <= done < 16 and f"16 batches, {done} done" in said
    whole, killed = table(tmp_path / "whole"), table(tmp_path / "killed")
    assert killed == whole and [line["way"] for line in whole] == [
        "once",
        "again",
        "actor",
        "expert",
    ]
    assert all(line["n"] == 10 and line["prompts"] == 5 for line in whole)
    again = run(*SMALL, "--out", tmp_path / "whole").stdout
    assert "16 batches, 16 done" in again
    other = run(*SMALL, "--config.editor.guidance_scale=5", "--out", tmp_path / "whole").stdout
    assert "16 batches, 0 done" in other  # other settings are other pictures


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["draw"], "nothing to draw: give --prompt or --prompts-file"),
        (["draw", "--prompt", "a cat"], "not a prompt of the shapes world: 'a cat'"),
        (["draw", "--prompt", PROMPTS[0], "--way", "magic"], "--way 'magic': one of once, again"),
        (["draw", "--prompt", PROMPTS[0], "--images", "0"], "--images 0: at least 1"),
        (["draw", "--prompt", "left of a cat"], "--prompt: 'left of a cat' lacks one side"),
        (["evaluate", "--config.editor.knid=x"], "did you mean 'editor.kind'?"),
        (["evaluate", "--config.evaluate.ways=[]"], "config.evaluate.ways=() is out of range"),
        (["evaluate", "--config=config/stage_process.py:tiny"], "is of the method 'srrl'"),
        (["evaluate", "--config.editor.model=srrl/shapes/tiny_sd"], "tiny_sd"),
        (["evaluate", "--config.checker.model=/nowhere"], "/nowhere"),
        (["evaluate", "--config.prompts.heldout=/nowhere.json"], "/nowhere.json"),
    ],
)
def test_what_cannot_be_is_one_line(command, said, tmp_path):
    result = run(*RIG, *command, "--out", tmp_path, check=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr
