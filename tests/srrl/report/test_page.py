"""The page itself: one file that needs nothing else, whatever a run has in it, and its table."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from srrl.errors import UserError
from srrl.report.gather import read_runs
from srrl.report.page import write_report
from srrl.report.thumbnails import LAST_KEPT, SHEET, stories
from tests.conftest import PROMPTS
from tests.srrl.report.folders import HOSTILE, lines, metrics_line, write_run

EMPTY = {"area", "base", "br", "img", "input", "line", "link", "meta", "wbr"}


class Page(HTMLParser):
    """A page's elements, and its text outside of scripts and styles; every element is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(*runs: Path, out: Path) -> Page:
    return Page(write_report(runs, out))


def test_a_run_is_explained_in_one_file_that_needs_nothing_else(tmp_path):
    run = write_run(tmp_path / "run", kept=[1, 3])
    (run / "environment.json").write_text('[{"commit": "0a1b2c"}, {"commit": "3d4e5f"}]')
    (run / "samples" / "stage_0003.png").write_bytes(
        (run / "samples/fixed/train_K1/stage_0003.png").read_bytes()
    )
    page = report(run, out=run)
    assert {p.name for p in run.iterdir() if "report" in p.name} == {"report.html"}
    fixed, sheet, kept = 2 * 4 * 2, 1, 2 * 4
    images = page.all("img")
    assert len(images) == fixed + sheet + kept
    assert all(i["src"].startswith("data:image/webp;base64,") and i["alt"] for i in images)
    assert all(href.startswith(("#", "data:")) for a in page.all("a") if (href := a["href"]))
    assert not re.search(r"(src|href)=.?https?:|@import|url\((?!#)", page.source)
    ids = [a["id"] for _, a in page.elements if a.get("id", "").startswith("run")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= {*ids, "main"}
    for said in (
        "SRRL (arXiv 2505.22407)",
        "0a1b2c",
        "3d4e5f",
        "Start 2",
        "sample.num_steps",
        "No warnings",
        PROMPTS[0],
    ):
        assert said in page.text
    alone = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert any(told.startswith("Evaluation by shapes, K = 1. train: 0.15 at") for told in alone)


@pytest.mark.slow
def test_what_a_prompt_or_a_name_has_in_it_is_text(tmp_path):
    run = write_run(tmp_path / "<b>&\"'$x", prompts=[HOSTILE, *PROMPTS[1:]], kept=[3])
    reward = "my<i>:Re$ward"
    more = {f"reward/{reward}/mean": 0.5, "seconds/<u>": 1.0}
    lines(run / "metrics.jsonl", [metrics_line(n, **more) for n in (1, 2)])
    page = report(run, out=run)
    assert len(page.all("script")) == 1 and not page.all("b") + page.all("i") + page.all("u")
    assert HOSTILE in page.text and any(HOSTILE in i["alt"] for i in page.all("img"))
    assert f"Reward of the samples: {reward}" in page.text
    both = report(run, write_run(tmp_path / "_<s>"), out=tmp_path / "both")
    assert len(both.all("script")) == 1 and not both.all("b") + both.all("s")
    assert "_<s>" in both.text


def test_a_logarithmic_scale_has_plain_numbers(tmp_path):
    run = write_run(tmp_path / "run")
    ratios = [{"ratio/max_dev": v, "ratio/first_max_dev": 4e-3} for v in (4e-3, 2e-2)]
    lines(run / "metrics.jsonl", [metrics_line(n, **more) for n, more in enumerate(ratios, 1)])
    page = report(run, out=run)
    shown = page.text.replace("\N{MINUS SIGN}", "-")
    assert all(number in shown for number in ("1e-03", "1e-02", "1e-01"))
    assert "mathdefault" not in page.source


def test_a_run_that_has_just_begun_and_one_without_pictures_have_a_page(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        (run / name).write_text("")
    page = report(run, out=run)
    assert "The run has just begun" in page.text and not page.all("img")
    begun = write_run(tmp_path / "begun")
    (begun / "metrics.jsonl").write_text('{"stage": 1}\n{"stage"')
    (begun / "samples/fixed/train_K1/stage_0003.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert "1 line of metrics.jsonl" in report(begun, out=begun).text
    (begun / "config.json").unlink()
    assert "config.json is not there" in report(begun, out=begun).text
    assert "2 runs beside" in report(run, begun, out=tmp_path / "both").text


def test_several_runs_are_compared_and_their_table_is_a_csv(tmp_path):
    first = write_run(tmp_path / "first")
    other = write_run(tmp_path / "other", "--config.seed=7", gain=0.2)
    apart = write_run(tmp_path / "apart", prompts=PROMPTS[:3])
    page = report(first, other, apart, out=tmp_path / "compare")
    with open(tmp_path / "compare" / "report.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["run"], row["split"]) for row in table] == [
        (name, split) for split in ("train", "heldout") for name in ("first", "other", "apart")
    ]
    assert float(table[1]["last_minus_first_run_mean"]) == pytest.approx(0.3)
    assert (
        table[2]["last_minus_first_run_mean"] == "" and "3 x 1, not 4 x 1" in table[2]["not_paired"]
    )
    assert "+0.300" in page.text and table[2]["not_paired"] in page.text
    assert "seed" in page.text and "sample.num_steps" not in page.text
    shown = [i["alt"] for i in page.all("img")]
    assert len(shown) == 2 * 2 * 2 and not any("apart" in alt for alt in shown)


@pytest.mark.slow
def test_phases_of_rl_rig_are_shown_one_after_the_other_and_compared_with_their_like(tmp_path):
    for name in ("a", "b"):
        for phase in ("actor", "editor"):
            write_run(tmp_path / name / phase)
    page = report(tmp_path / "a", out=tmp_path / "a")
    assert "a/actor" in page.text and "a/editor" in page.text
    report(tmp_path / "a", tmp_path / "b", out=tmp_path / "both")
    table = (tmp_path / "both" / "report.csv").read_text().splitlines()
    runs = [line.split(",")[0] for line in table[1:]]
    assert runs == ["a/actor", "b/actor"] * 2 + ["a/editor", "b/editor"] * 2


@pytest.mark.slow
def test_large_pictures_become_small_and_are_bounded(tmp_path):
    run = write_run(tmp_path / "run", side=256)
    page = Image.effect_noise((2 * SHEET, 800), 80)
    page.convert("RGB").save(run / "samples" / "stage_0002.png")
    Image.new("RGB", (16, 16), "red").save(run / "one.png")
    named = {"stage": 3, "prompt": "p", "branch": 0, "round": 1, "image": "one.png"}
    lines(run / "samples.jsonl", [{**named, "slot": n} for n in range(LAST_KEPT + 5)])
    page = report(run, out=run)
    assert len(page.all("img")) == 16 + 1 + LAST_KEPT
    assert f"{LAST_KEPT} of {LAST_KEPT + 5} pictures" in page.text
    assert len(page.source) < 20e6


def test_the_rounds_of_a_sample_stand_side_by_side(tmp_path):
    run = write_run(tmp_path / "run", kept=[3])
    first = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    second = [{**line, "round": 2, "scores": {"shapes": 0.77}} for line in first]
    other = [{**line, "branch": 1} for line in first]
    lines(run / "samples.jsonl", [*first, *second, *other])
    table = stories(read_runs(run)[0])
    assert table.columns == ["round 1", "round 2"] and len(table.rows) == len(PROMPTS)
    prompt, (before, after) = table.rows[1]
    assert prompt == PROMPTS[1] and "branch 1, round 2" in after.alt
    assert (before.caption[0], after.caption[0]) == ("shapes 0.90", "shapes 0.77")


@pytest.mark.slow
def test_ten_runs_of_32_stages_are_a_small_page(tmp_path):
    runs = [write_run(tmp_path / f"run{n}", stages=32, gain=0.001 * n) for n in range(10)]
    page = report(*runs, out=tmp_path / "compare")
    assert len(page.source) < 2e6 and "10 runs beside each other" in page.text


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / folder / "tiny") for folder in "ab"]
    page = report(*runs, out=tmp_path / "compare")
    assert all(str(run) in page.text for run in runs)


def test_nothing_is_written_where_something_is_no_run(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    for others, said in (([tmp_path], "is no run"), ([run], "given twice")):
        with pytest.raises(UserError, match=said):
            write_report([run, *others], out)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(UserError, match="there is a file of this name"):
        write_report([run], out)
    assert out.read_text() == "mine"


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(tmp_path):
    run = write_run(tmp_path / "run", kept=[3])
    before = report(run, out=tmp_path / "one").source
    assert report(run, out=tmp_path / "two").source == before
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 8}))
    assert report(run, out=tmp_path / "two").source != before
