"""The exact reader: every scene of the world is read from its render as what it is."""

import random

import torch

from srrl.rig.graphs import parse_graph, similarities
from srrl.shapes.lessons import (
    caption,
    draw,
    flipped,
    heldout,
    lesson,
    moved,
    scene_near,
    shows_any,
    some_things,
)
from srrl.shapes.reader import graph_of, read, stands, truths
from srrl.shapes.scenes import RELATIONS, all_scenes, render

SCENES = all_scenes()
RENDERS = (render(SCENES, torch.Generator().manual_seed(3)) * 255).round().to(torch.uint8)
SEEN = read(RENDERS)


def test_every_render_is_read_as_its_scene():
    for scene, seen in zip(SCENES, SEEN, strict=True):
        assert truths(seen, scene) == [True] * 3
        assert similarities(graph_of(seen), parse_graph(scene.prompt))["sg_iou"] == 1
        assert truths(seen, flipped(scene)) == [True] * 3
        assert sum(stands(seen, scene.first[0], r, scene.second[0]) for r in RELATIONS) == 1


def test_a_wrong_shape_is_not_there_and_takes_its_relation_with_it():
    scene, seen = SCENES[0], SEEN[0]
    other = next(
        s
        for s in SCENES
        if s.first[0] == scene.first[0]
        and s.first != scene.first
        and s.relation == scene.relation
        and s.second == scene.second
    )
    assert truths(seen, other) == [False, True, False]
    assert read(torch.full((1, 3, 32, 32), 237, dtype=torch.uint8)) == [{}]


def test_a_moved_picture_shows_what_is_said_of_it():
    rng = random.Random(0)
    for picture, seen in zip(RENDERS[::20], SEEN[::20], strict=True):
        image, said = moved(picture, seen, rng)
        (found,) = read(image[None])
        assert {c: t.shape for c, t in found.items()} == {c: t.shape for c, t in said.items()}
        for colour, thing in said.items():
            assert abs(found[colour].x - thing.x) < 0.2 and abs(found[colour].y - thing.y) < 0.2


def test_lessons_are_true_and_leave_held_out_scenes_out():
    rng, avoid = random.Random(1), heldout()
    assert len(avoid) == 2 * 128 or len(avoid) >= 128
    pictures = draw([some_things(rng, 0.3) for _ in range(200)], 0, 0.5)
    said = {"yes": 0, "no": 0}
    for seen in read(pictures):
        if shows_any(seen, avoid):
            continue
        scene = scene_near(seen, rng)
        for question, answer in lesson(seen, scene, avoid, rng):
            if answer in said:
                said[answer] += 1
            if question.startswith("what is "):
                colour = question[len("what is ") : -1]
                assert answer == f"a {colour} {seen[colour].shape or 'blob'}"
        described = caption(seen)
        if seen:
            assert parse_graph(described).triples == graph_of(seen).triples
    assert 0.3 < said["yes"] / sum(said.values()) < 0.7
