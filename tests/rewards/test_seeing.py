"""The rewards that look at scene graphs: by the embedded VLM, exactly, and by real classes."""

import json

import pytest
import torch

from rewards import check_prompts, details_of, load_rewards, score_all
from rewards.checker import Checker, Requirements
from rewards.sgiou import SGIoU
from srrl.errors import UserError
from srrl.rig.graphs import parse_graph
from srrl.rig.seeing import DESCRIBE_AS_GRAPH, Seer, graph_or_none, has, within
from srrl.shapes.lessons import flipped
from srrl.shapes.reader import read, truths
from srrl.shapes.scenes import all_scenes, render

SCENES = all_scenes()[::9]
PICTURES = (render(SCENES, torch.Generator().manual_seed(4)) * 255).round().to(torch.uint8)
PROMPTS = [scene.prompt for scene in SCENES]
WRONG = [SCENES[(i + 7) % len(SCENES)].prompt for i in range(len(SCENES))]


@pytest.fixture(scope="module", params=["yesno", "lookup"])
def checker(request) -> Checker:
    return Checker(form=request.param)


def exact_shares(prompts: list[str]) -> torch.Tensor:
    from srrl.shapes.scenes import parse

    seen = read(PICTURES)
    return torch.tensor([sum(truths(s, parse(p))) / 3 for s, p in zip(seen, prompts, strict=True)])


def test_the_checker_is_the_share_of_requirements_that_a_picture_meets(checker):
    for prompts in (PROMPTS, WRONG):
        scores = checker.score(PICTURES, prompts)
        assert set((3 * scores).round().tolist()) <= {0, 1, 2, 3}
        assert (scores - exact_shares(prompts)).abs().mean() < 0.05


def test_requirements_are_read_off_the_pixels():
    reward = Requirements()
    for prompts in (PROMPTS, WRONG):
        assert reward.score(PICTURES, prompts).tolist() == exact_shares(prompts).tolist()
    reward.score(PICTURES, PROMPTS)
    assert list(reward.details[0].values()) == [True] * 3
    assert list(reward.details[0]) == [r.text for r in parse_graph(PROMPTS[0]).requirements()]


def test_what_was_answered_is_kept_by_requirement(checker):
    checker.score(PICTURES[:2], PROMPTS[:2])
    for details, prompt, score in zip(
        checker.details, PROMPTS, checker.score(PICTURES[:2], PROMPTS[:2]).tolist(), strict=False
    ):
        required = parse_graph(prompt).requirements()
        assert list(details) == [r.text for r in required]
        assert all(0 <= p <= 1 for p in details.values())
        assert sum(p > 0.5 for p in details.values()) / 3 == pytest.approx(score)
    assert json.loads(json.dumps(checker.details)) == checker.details


def test_a_score_does_not_depend_on_its_company(checker):
    together = checker.score(PICTURES, PROMPTS)
    alone = [checker.score(PICTURES[i : i + 1], PROMPTS[i : i + 1]).item() for i in range(6)]
    assert alone == together[:6].tolist()


def test_sgiou_exact_is_one_of_what_is_there_and_nothing_of_what_is_not():
    reward = SGIoU()
    assert reward.score(PICTURES, PROMPTS).tolist() == [1.0] * len(PROMPTS)
    assert reward.score(PICTURES, [flipped(s).prompt for s in SCENES]).tolist() == [1.0] * len(
        SCENES
    )
    assert reward.score(PICTURES, WRONG).max() == 0
    assert parse_graph(reward.details[0]["seen"]).triples == parse_graph(PROMPTS[0]).triples


@pytest.mark.parametrize("bound", [False, True])
def test_sgiou_by_the_vlm_agrees_with_the_pixels(bound):
    seen = SGIoU("embedded", bound=bound)
    right, wrong = seen.score(PICTURES, PROMPTS), seen.score(PICTURES, WRONG)
    assert right.mean() > 0.8 and wrong.mean() < 0.1
    assert all(d["seen"] is None or parse_graph(d["seen"] or "x") for d in seen.details)


def test_what_is_written_is_a_graph_nothing_or_none():
    assert graph_or_none("a red circle above a blue square").triples
    assert graph_or_none(" Nothing. ").entities == ()
    assert graph_or_none("on the") is None and graph_or_none("") is None


def test_bound_to_a_vocabulary_only_its_words_are_left():
    seen = parse_graph("red cat on mat; dog under table; bird")
    bound = parse_graph("dog under table; red cat near mat; bird")
    left = within(seen, bound)
    assert str(left) == "dog under table; red cat; mat; bird"


def test_requirements_are_looked_up_in_a_graph():
    graph = parse_graph("red circle above blue square")
    wanted = parse_graph("blue square below red circle").requirements()
    assert all(has(graph, r) for r in wanted) and not any(has(None, r) for r in wanted)
    other = parse_graph("red circle below blue square").requirements()
    assert [has(graph, r) for r in other] == [True, True, False]


def test_prompts_that_the_embedded_model_cannot_see_are_refused_with_the_remedy():
    rewards = load_rewards(["checker", "sgiou"])
    check_prompts(rewards, PROMPTS, "here")
    for name in rewards:
        with pytest.raises(
            UserError, match=f"here: reward '{name}' cannot judge it: .*give another"
        ):
            check_prompts({name: rewards[name]}, ["a dog on a bicycle"], "here")
    with pytest.raises(UserError, match=r"checker.*form 'maybe'"):
        load_rewards(["checker"], {"checker": {"form": "maybe"}})
    with pytest.raises(UserError, match="cannot load the VLM 'nowhere'"):
        load_rewards(["checker"], {"checker": {"model": "nowhere"}})


def test_details_go_with_the_scores_and_must_be_as_many():
    rewards = load_rewards(["checker", "shapes"])
    score_all(rewards, PICTURES[:3], PROMPTS[:3])
    assert list(details_of(rewards, 3)) == ["checker"]
    with pytest.raises(UserError, match="'checker' has 3 details of 4 images"):
        details_of(rewards, 4)


def test_a_real_model_is_instructed_and_bound_by_its_request(tmp_path):
    from tests.srrl.models.test_vlm import network

    for part in network("qwen3"):
        part.save_pretrained(tmp_path)
    asked = []
    seer = Seer.load(str(tmp_path), batch_size=2)
    write, p_yes = seer.vlm.write, seer.vlm.p_yes
    seer.vlm.write = lambda images, requests, **k: (
        asked.extend(requests) or write(images, requests, **k)
    )
    seer.vlm.p_yes = lambda images, questions: asked.extend(questions) or p_yes(images, questions)
    truth = parse_graph("red cat on mat")
    found = seer.describe(PICTURES[:3], [truth] * 3, max_tokens=3)
    assert len(found) == 3
    assert (
        asked[0]
        == f"{DESCRIBE_AS_GRAPH} Use only these things: red cat, mat. Use only these relations: on."
    )
    (chances,) = seer.check(PICTURES[:1], [truth.requirements()])
    assert asked[-1][0] == "is there a red cat? Answer yes or no." and len(chances) == 3
