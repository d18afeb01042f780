"""The loop on the embedded parts: what it keeps, what it counts, what it costs."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from srrl.config import load_config, resolve
from srrl.errors import UserError
from srrl.rig.assess import records, summary, table
from srrl.rig.forms import Edit
from srrl.rig.loop import Costs, Loop, failed
from srrl.rig.seeing import Seer
from srrl.rig.setup import Parts
from srrl.rig.strips import strip
from srrl.rig.ways import first_pictures, way_of
from srrl.rig.wishes import wish_of
from srrl.run.pictures import sheet
from tests.conftest import PROMPTS

RIG = ["--config=config/rig.py:tiny", "--config.loop.rounds=2"]
EVERY = list(PROMPTS)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(load_config(RIG, methods=["rig"]), "cpu")


@pytest.fixture(scope="module")
def wishes():
    return [wish_of(prompt, i, "here") for i, prompt in enumerate(EVERY)]


def test_prompts_that_the_diffuser_does_not_read_whole_are_named(parts, wishes):
    long = replace(wishes[0], prompt=" ".join(PROMPTS))
    assert parts.cut(wishes) == ""
    assert "1 of 5 prompts are longer than the 16 tokens" in parts.cut([*wishes, long])


@pytest.fixture(scope="module")
def first(parts, wishes):
    return first_pictures(parts, wishes, seed=5)


def run(parts, wishes, first, name):
    return way_of(parts, name).run(*first, wishes, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["once", "again", "best", "plain", "actor", "expert"])
def test_what_is_kept_never_passes_less_and_the_bill_is_what_was_counted(
    name, parts, wishes, first
):
    before = parts.meter.read()
    way = way_of(parts, name)
    trails = run(parts, wishes, first, name)
    spent = parts.meter.read() + before * -1
    billed = sum((trail.costs for trail in trails), Costs())
    assert billed.evaluations == pytest.approx(spent.evaluations + len(wishes) * 20)
    assert billed.calls == pytest.approx(spent.calls)
    assert billed.tokens == pytest.approx(spent.tokens)
    most = way.most()
    for i, trail in enumerate(trails):
        assert torch.equal(trail.steps[0].image, first[0][i])
        assert trail.final.count == max(step.count for step in trail.steps)
        assert trail.costs.evaluations <= most[0] + 1e-9 and trail.costs.calls <= most[1] + 1e-9
        if name == "best":
            assert len(trail.steps) == 3
        elif name == "once":
            assert len(trail.steps) == 1
        elif trail.steps[0].whole:
            assert len(trail.steps) == 1 and not trail.refused
        else:
            assert len(trail.steps) + len(trail.refused) > 1
        assert all((s.edit is None) == (name in ("once", "again", "best")) for s in trail.steps[1:])
    assert any(len(trail.steps) > 1 for trail in trails) == (name != "once")


@pytest.mark.slow
def test_a_wish_goes_its_own_way_whatever_is_beside_it(parts, wishes, first):
    together = run(parts, wishes, first, "actor")
    for i in (0, 3):
        (alone,) = run(parts, wishes[i : i + 1], (first[0][i : i + 1], first[1]), "actor")
        assert [s.edit and s.edit.text for s in alone.steps] == [
            s.edit and s.edit.text for s in together[i].steps
        ]
        for one, other in zip(alone.steps, together[i].steps, strict=True):
            assert (one.image.int() - other.image.int()).abs().max() <= 1


def test_what_is_no_edit_leaves_the_picture_and_is_counted(parts, wishes, first):
    def nothing(asked):
        reasons = ["malformed", "empty", "unchanged", "template"]
        return [Edit(None, reasons[i % 4], "x") for i in range(len(asked.wishes))]

    def never(asked, texts):
        raise AssertionError("it is not drawn again")

    way = replace(way_of(parts, "actor"), write=nothing, redraw=never)
    trails = way.run(*first, wishes, 5)
    lacking = [trail for trail in trails if not trail.steps[0].whole]
    assert lacking and all(len(t.steps) == 1 and len(t.refused) == 2 for t in lacking)
    assert sum(sum(t.reasons.values()) for t in trails) == 2 * len(lacking)


def test_the_last_is_kept_where_that_is_asked(parts, wishes, first):
    config = load_config([*RIG, "--config.loop.keep=last"], methods=["rig"])
    object.__setattr__(parts, "config", config)
    try:
        trails = run(parts, wishes, first, "actor")
    finally:
        object.__setattr__(parts, "config", load_config(RIG, methods=["rig"]))
    assert all(trail.kept == len(trail.steps) - 1 for trail in trails)


@pytest.mark.parametrize("kind", [ConnectionError, UserError])
@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ("write", "while writing the edits of round 1"),
        ("redraw", "while drawing again in round 1"),
        ("seer", "while checking the first pictures"),
    ],
)
def test_a_part_that_fails_is_an_error_with_its_place(broken, where, kind, parts, wishes, first):
    class Down(Seer):
        def __init__(self):
            pass

        def check(self, images, required):
            raise kind("down")

    def down(*_):
        raise kind("down")

    way = way_of(parts, "plain")
    loop = Loop(parts.seer, way.write, way.redraw, parts.meter, 2)
    loop = replace(loop, **{broken: Down() if broken == "seer" else down})
    with pytest.raises(kind) as error:
        loop.run(first[0], wishes, 5)
    said = str(error.value) if kind is UserError else error.value.__notes__
    assert where in said


def test_a_checker_whose_numbers_overflow_is_an_error(wishes, first):
    seer = Seer.load("embedded", form="yesno")
    with torch.no_grad():
        next(seer.vlm.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"P\(yes\) is not finite in torch\.float32"):
        seer.check(first[0], [wish.requirements for wish in wishes])


def test_prompts_that_the_parts_do_not_know_are_refused_with_their_place(parts):
    with pytest.raises(UserError, match=r"^prompts: not a prompt of the shapes world: 'a cat'"):
        parts.check([wish_of("a cat", 0, "prompts")], ["actor"], "prompts")
    with pytest.raises(UserError, match=r"^prompts: 'left of a cat' lacks one side"):
        wish_of("left of a cat", 0, "prompts")


@pytest.mark.slow
def test_an_editor_of_another_size_is_refused(tmp_path):
    config = load_config(RIG, methods=["rig"])
    shutil.copytree(resolve(config.editor.model), tmp_path / "editor")
    unet = tmp_path / "editor" / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"sample_size": 32}))
    config.editor.model = str(tmp_path / "editor")
    with pytest.raises(UserError, match=r"edits pictures of .*, the diffuser's are of \(32, 32\)"):
        _ = Parts(config, "cpu").instruct


def test_the_expert_sees_what_is_wrong_and_the_table_says_what_came_of_it(parts, wishes, first):
    by_way = {}
    for name in ("once", "expert"):
        trails = run(parts, wishes, first, name)
        lines = records(trails, exact=True, seer=parts.seer, judges={})
        by_way[name] = [{**line, "image": 0, "seconds": 0.1} for line in lines]
    rows = summary(by_way, 1, "once")
    assert [row["way"] for row in rows] == ["once", "expert"]
    assert rows[1]["checker"] >= rows[0]["checker"] and rows[0]["difference"] == 0
    assert 0 <= rows[0]["open/failed"] <= 1 and rows[0]["evaluations"] == 20
    text = table(rows, {name: way_of(parts, name).most() for name in by_way})
    assert text.count("| `expert` |") == 3 and "| 20 | 20 | 1.0 | 1 |" in text
    row = strip(trails[0])
    assert len(row.images) == len(row.captions) and "[" in row.captions[0]
    assert sheet([row]).width > 128
    lacking = [t for t in trails if not t.final.whole]
    assert all(failed(t) != t.wish.requirements or t.final.count == 0 for t in lacking)
