"""Edit prompts of the shapes world: what they make of a picture, what an expert writes."""

import random

import pytest
import torch

from srrl.rig.forms import read_edit
from srrl.shapes.edits import (
    JOINT,
    MOST,
    actor_lesson,
    apply,
    edit_lessons,
    expert,
    naive,
    plausible,
    repairs,
    seen_of,
    some_change,
    things_of,
    whole,
)
from srrl.shapes.lessons import COLOUR_NAMES, Drawn, draw, heldout, shows_any, some_things
from srrl.shapes.pipeline import EDIT_TOKENS, EDIT_WORDS, build_tokenizer
from srrl.shapes.reader import read, truths
from srrl.shapes.scenes import all_scenes, parse

LEFT = Drawn("red", "circle", "circle", 0.0, 8.0, 16.0, 4.5)
RIGHT = Drawn("blue", "square", "square", 0.0, 24.0, 16.0, 4.5)
SCENES = all_scenes()


def after(text: str, *things: Drawn) -> set[tuple[str, str]] | None:
    made = apply(text, things or (LEFT, RIGHT), random.Random(0))
    return made and {(t.colour, t.shape) for t in made}


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("make the red shape a triangle", {("red", "triangle"), ("blue", "square")}),
        ("make the red shape green", {("green", "circle"), ("blue", "square")}),
        ("remove the red shape", {("blue", "square")}),
        (
            "remove the blue shape; add a green circle above the red shape",
            {("red", "circle"), ("green", "circle")},
        ),
        ("add a green circle", {("red", "circle"), ("blue", "square"), ("green", "circle")}),
        (
            "make the red shape green; make the green shape a square",
            {("green", "square"), ("blue", "square")},
        ),
        ("make the green shape red", None),  # there is none
        ("make the red shape blue", None),  # there is one
        ("add a red square", None),
        ("move the red shape above the red shape", None),
        ("move the red shape above the green shape", None),
        ("remove the red shape; make the red shape green", None),
    ],
)
def test_what_an_edit_makes(text, things):
    assert after(text) == things


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_a_move_moves(relation):
    scene = parse(f"a red circle {relation} a blue square")
    text = f"move the red shape {relation} the blue shape"
    made = apply(text, (LEFT, RIGHT), random.Random(1))
    assert all(truths(seen_of(made), scene)) and len(made) == 2
    assert repairs(scene, seen_of([LEFT, RIGHT])) == ([] if relation == "left of" else [text])


def test_an_experts_changes_make_every_scene_of_every_picture():
    rng, made_whole, blocked = random.Random(0), 0, 0
    for _ in range(600):
        now, scene = list(whole(some_things(rng, 0.3)).values()), rng.choice(SCENES)
        for change in repairs(scene, seen_of(now)):
            now = apply(change, now, rng)
            if now is None:  # a third thing is in the way
                break
        if now is None:
            blocked += 1
            continue
        assert all(truths(seen_of(now), scene))
        made_whole += 1
    assert made_whole > 480 and blocked < 100
    assert repairs(SCENES[0], {}) == [
        f"add a {' '.join(SCENES[0].first)}",
        f"add a {' '.join(SCENES[0].second)} right of the {SCENES[0].first[0]} shape",
    ]


def test_whatever_may_be_written_is_understood_or_means_nothing():
    rng = random.Random(0)
    for _ in range(300):
        things, scene = some_things(rng, 0.3), rng.choice(SCENES)
        seen = seen_of(list(whole(things).values()))
        texts = [*plausible(scene, seen), naive(scene, seen, rng), some_change(list(seen), rng)]
        for text in texts:
            made = apply(text, things, rng)
            assert made is None or all(t.mix == 0 for t in made)
        assert expert(scene, seen).count(JOINT) < MOST


def test_every_word_is_one_token_and_every_edit_has_room():
    tokenizer = build_tokenizer(EDIT_TOKENS, EDIT_WORDS)
    for word in EDIT_WORDS:
        assert len(tokenizer.tokenize(word)) == 1, word
    longest = JOINT.join(["add a yellow triangle right of the green shape"] * MOST)
    assert len(tokenizer(longest).input_ids) <= EDIT_TOKENS


def test_lessons_ask_for_no_change_by_captions_and_know_no_held_out_scene():
    rng, avoid = random.Random(0), heldout()
    pictures = draw([some_things(rng, 0.3) for _ in range(200)], 1)
    prompts = [rng.choice(SCENES).prompt for _ in range(200)]
    sources, texts, targets = edit_lessons(300, pictures, read(pictures), prompts, avoid, rng)
    assert len(sources) == len(texts) == len(targets) > 150
    assert sources.dtype == targets.dtype == torch.uint8
    idle = [i for i, text in enumerate(texts) if text.startswith("a ")]
    assert 0.12 < len(idle) / len(texts) < 0.4
    for i in idle:
        assert parse(texts[i]) not in avoid
    seen = read(targets)
    shown = [shows_any(s, avoid) for s in seen]
    assert sum(shown) <= 2  # the reader's rounding
    same = [set(a) == set(b) for a, b in zip(read(sources[idle]), read(targets[idle]), strict=True)]
    assert sum(same) > 0.95 * len(same)


def test_an_actors_lesson_has_the_form_and_is_about_what_failed():
    rng = random.Random(0)
    seen = seen_of([LEFT, RIGHT])
    assert actor_lesson(seen, parse("a red circle left of a blue square"), rng, 0.2) is None
    scene, right = parse("a red triangle left of a blue square"), 0
    for _ in range(200):
        asked, written = actor_lesson(seen, scene, rng, 0.2)
        assert "is there a red triangle?" in asked and "is there a blue square?" not in asked
        read_ = read_edit(written, scene.prompt)
        assert read_.reason is None
        right += read_.text == "make the red shape a triangle"
    assert 0.2 < right / 200 < 0.5
    assert things_of(seen) == [LEFT, RIGHT] and set(seen) < set(COLOUR_NAMES)
