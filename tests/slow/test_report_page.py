"""The report in a real browser, as narrow as a phone: what it loads, says, sorts, and its colours;
and scripts/report.py, which writes it, refuses and watches."""

import functools
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from html import unescape
from pathlib import Path

import pytest

from srrl.config import REPOSITORY
from srrl.report.page import write_report
from tests.conftest import PRESET, PROMPTS, small_run
from tests.slow.commands import run
from tests.srrl.report.folders import HOSTILE, metrics_line, write_run
from tests.test_commands import assert_one_line_error, command

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium")
PAGES = ("one", "both", "hostile")
WIDTH = 360
# Looks into a page in a frame of a phone's width once all of it is there, before the browser says
# that this one is loaded, and leaves what it found as JSON.
LOOK = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<pre id="found"></pre>
<script>
function look(frame) {
  const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle;
  const lists = [...new Set([...page.querySelectorAll("button[aria-controls]")].map(
    (button) => button.getAttribute("aria-controls")))];
  const sorted = lists.map((id) => {
    const buttons = [...page.querySelectorAll(`button[aria-controls="${id}"]`)];
    const by = buttons.find((button) => button.dataset.by);
    const order = () => [...page.getElementById(id).children].map(
      (item) => item.dataset[by.dataset.by]);
    const orders = [order()];
    for (const button of [by, by, buttons.find((button) => !button.dataset.by)]) {
      button.click();
      orders.push(order());
    }
    return orders;
  });
  document.getElementById("found").textContent = JSON.stringify({
    title: page.title,
    images: [...page.images].map((image) => image.naturalWidth),
    width: page.documentElement.scrollWidth,
    scrolls: [...page.querySelectorAll(".scroll")].filter(
      (part) => part.scrollWidth > part.clientWidth).length,
    sorted,
    paper: style(page.body).backgroundColor,
    inks: [...page.querySelectorAll(".chart svg text, p, td, a, button")].map((part) =>
      part.closest("svg") ? style(part).fill : style(part).color),
    lines: [...page.querySelectorAll(".chart svg [id^=line2d] > path")].map(
      (part) => style(part).stroke),
  });
}
</script>
<iframe src="report.html" onload="look(this)" style="border: 0; width: 360px; height: 800px">
</iframe>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pages: of a trained run, of it beside a copy, and of one with markup in its names."""
    folder = tmp_path_factory.mktemp("pages")
    flags = [*small_run(folder), "--config.pictures.images=true"]
    run(sys.executable, "scripts/train.py", PRESET, *flags, OMP_NUM_THREADS="1")
    hostile = write_run(folder / "<img src=x>", prompts=[HOSTILE, *PROMPTS[1:]], kept=[3])
    write_report([folder / "run"], folder / "one")
    shutil.copytree(folder / "run", folder / "again")
    write_report([folder / "run", folder / "again"], folder / "both")
    write_report([hostile], folder / "hostile")
    for name in PAGES:
        (folder / name / "look.html").write_text(LOOK)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": print_nothing})
    handler = functools.partial(quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def print_nothing(*_: object) -> None:
    return None


def looked(address: str, page: str, profile: Path, dark: bool = False) -> tuple[dict, list[str]]:
    """What LOOK finds in a page, and what the browser's console says."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    flags += [f"--user-data-dir={profile}", scheme]
    result = subprocess.run(
        [BROWSER, *flags, "--dump-dom", f"{address}/{page}/look.html"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_shows_it_all_and_sorts_it(page, address, tmp_path):
    found, console = looked(address, page, tmp_path)
    assert console == []
    assert found["title"].endswith(": report")
    assert found["images"] and min(found["images"]) > 0
    assert found["width"] <= WIDTH and found["scrolls"] > 0
    assert found["sorted"]
    for before, down, up, after in found["sorted"]:
        values = [float(value) for value in before]
        assert [float(value) for value in down] == sorted(values, reverse=True)
        assert [float(value) for value in up] == sorted(values)
        assert after == before
    assert any(before != down for before, down, *_ in found["sorted"])


def brightness(colour: str) -> float:
    """The relative luminance of WCAG of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dim, bright = sorted((brightness(one), brightness(other)))
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
@pytest.mark.parametrize("dark", [False, True])
def test_texts_and_charts_are_readable_on_a_light_page_and_on_a_dark_one(dark, address, tmp_path):
    found, _ = looked(address, "one", tmp_path, dark)
    assert (brightness(found["paper"]) < 0.2) is dark
    assert min(contrast(ink, found["paper"]) for ink in found["inks"]) >= 4.5
    drawn = [line for line in found["lines"] if line != "none"]
    grid = min(contrast(line, found["paper"]) for line in drawn)
    lines = [c for line in drawn if (c := contrast(line, found["paper"])) > grid + 0.01]
    assert lines and min(lines) >= 3


def test_the_command_writes_compares_and_refuses(folder, tmp_path):
    one, hostile = folder / "run", folder / "<img src=x>"
    script = [sys.executable, "scripts/report.py"]
    assert command(*script, one, "--out", tmp_path / "a").stdout == (
        f"wrote {tmp_path / 'a' / 'report.html'}\n"
    )
    assert_one_line_error(command(*script, one, hostile), "--out compare")
    refused = command(*script, one, "config", "--out", tmp_path / "b")
    assert_one_line_error(refused, "config is no run")
    assert not (tmp_path / "b").exists()


def test_watching_writes_again_when_the_logs_change_until_it_is_stopped(tmp_path):
    folder = write_run(tmp_path / "run", stages=5)
    watching = subprocess.Popen(
        [sys.executable, "scripts/report.py", folder, "--watch"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = f"wrote {folder / 'report.html'}\n"
    try:
        assert watching.stdout.readline() == said
        before = (folder / "report.html").read_text()
        time.sleep(0.1)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics_line(6, **{"reward/shapes/mean": 0.987})) + "\n")
        assert watching.stdout.readline() == said
        after = (folder / "report.html").read_text()
        assert "0.987 at 6" in after and "0.987 at 6" not in before
    finally:
        watching.send_signal(signal.SIGINT)
        _, stderr = watching.communicate(timeout=60)
    assert watching.returncode == 130 and stderr == "stopped\n"
