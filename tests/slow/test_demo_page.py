"""scripts/demo.py as it is used: over HTTP, and in a real browser; beside scripts/sample.py and
scripts/rig.py."""

import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests
from PIL import Image

from srrl.config import REPOSITORY
from srrl.prompts import load_prompts
from tests.conftest import PRESET, PROMPTS, small_run
from tests.lines import shown
from tests.slow.browser import BROWSER, browsing
from tests.slow.commands import run

pytest.importorskip("uvicorn", reason="the extra `demo` is not installed")

from srrl.demo.chosen import painter_of
from srrl.demo.fields import read

pytestmark = pytest.mark.slow
HELDOUT = REPOSITORY / "config" / "prompts" / "shapes_unconventional_heldout.json"
ASKED = {"prompt": PROMPTS[0], "seed": "3", "rounds": "3", "negative_prompt": "red"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run(sys.executable, "scripts/train.py", PRESET, *small_run(folder, 1), OMP_NUM_THREADS="1")
    return folder / "run"


@pytest.fixture(scope="module")
def address(trained) -> Iterator[str]:
    """Of the page of a trained run, which Ctrl-C ends."""
    process = subprocess.Popen(
        [sys.executable, "scripts/demo.py", "--checkpoint", trained, "--port", "0"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert ready, process.communicate()
        yield ready[0]
    finally:
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, shown(errors)) == (130, "", "stopped\n")


def pixels(png: bytes) -> bytes:
    return Image.open(BytesIO(png)).tobytes()


def test_a_sample_over_http_is_that_of_sample_py(address, trained, tmp_path):
    answer = requests.post(f"{address}/draw", json=ASKED, timeout=600).json()
    flags = ["--prompt", PROMPTS[0], "--seeds", "3", "--rounds", "3", "--negative-prompt", "red"]
    command = ["scripts/sample.py", "--checkpoint", trained, *flags, "--out", tmp_path]
    run(sys.executable, *command, OMP_NUM_THREADS="1")
    (drawn,) = json.loads((tmp_path / "samples.json").read_text())
    assert [card["scores"] for card in answer["cards"]] == drawn["scores"]
    last = base64.b64decode(answer["cards"][-1]["png"])
    saved = Image.open(tmp_path / "image_000.png")
    assert pixels(last) == saved.tobytes()
    assert Image.open(BytesIO(last)).text == {**saved.text, "round": "3"}


def test_bad_input_and_strangers_are_refused_in_one_line(address):
    told = requests.post(f"{address}/draw", json={**ASKED, "rounds": 11}, timeout=60)
    said = "Rounds K: '11': expected a whole number of 1 to 10"
    assert (told.status_code, told.json()) == (400, {"error": said})
    strange = requests.get(address, headers={"Host": "evil.example"}, timeout=60)
    assert strange.status_code == 400


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
def test_a_browser_types_draws_and_speaks_to_nobody_else(address, tmp_path):
    with browsing(tmp_path) as tab:
        tab.open(f"{address}/", width=390, height=844)
        tab.run("document.getElementById('draw').click()")
        tab.wait("document.getElementById('error').textContent")
        assert tab.run("document.getElementById('error').textContent") == "Prompt: empty: write one"
        refused = [said for said in tab.console if "400" in said]
        assert refused == tab.console

        tab.run("document.querySelector('.example').click()")
        assert tab.run("form.elements.prompt.value") in load_prompts(HELDOUT)
        tab.run("form.elements.prompt.select()")
        tab.type(PROMPTS[1])
        tab.run("form.elements.rounds.select()")
        tab.type("2")
        tab.run("document.getElementById('draw').click()")
        tab.wait("document.querySelectorAll('.cards img').length == 2")
        tab.wait("[...document.images].every((image) => image.complete)")
        assert tab.run("[...document.images].map((image) => image.naturalWidth)") == [32, 32]
        assert tab.run("document.querySelector('#drawn h2').textContent") == PROMPTS[1]
        links = "[...document.querySelectorAll('.download')].map((link) => link.download)"
        assert tab.run(links) == ["seed_0_round_1.png", "seed_0_round_2.png"]
        scores = tab.run("[...document.querySelectorAll('.scores dd')].map((x) => x.textContent)")
        told = {"prompt": PROMPTS[1], "rounds": 2}
        answer = requests.post(f"{address}/draw", json=told, timeout=600).json()
        assert scores == [f"{card['scores']['shapes']:.3f}" for card in answer["cards"]]
        assert tab.run("document.documentElement.scrollWidth") <= 390
        assert tab.console == refused
        assert all(
            asked.startswith((address, f"blob:{address}", "data:")) for asked in tab.requests
        )


def test_a_strip_is_that_of_rig_py(tmp_path):
    prompt, seed = "a red square left of a green circle", 307
    flags = ["--prompt", prompt, "--images", "1", f"--config.seed={seed}", "--out", tmp_path]
    run(sys.executable, "scripts/rig.py", "draw", *flags, OMP_NUM_THREADS="1")
    (drawn,) = json.loads((tmp_path / "samples.json").read_text())
    painter = painter_of(None, "config/rig.py:tiny", [], 10, True)
    answer = painter.draw(read(painter.fields, {"prompt": prompt, "seed": seed}))
    edits = [step.get("edit", "") for step in drawn["steps"]]
    assert any(edits) and [card.edit for card in answer.cards] == edits
    (kept,) = [card for card in answer.cards if card.kept]
    assert pixels(kept.png) == Image.open(tmp_path / "image_000.png").tobytes()
    checked = [[p > 0.5 for p in step["checked"].values()] for step in drawn["steps"]]
    assert [[met for _, met in card.marks] for card in answer.cards] == checked
    assert read(painter.fields, {"prompt": "x"})["rounds"] == painter.parts.config.loop.rounds
