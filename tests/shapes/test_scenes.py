"""The grammar is complete and unambiguous; the tokenizer knows its words."""

import json

import pytest
import torch

from scripts.make_shapes_prompts import prompt_sets
from srrl.config import REPOSITORY
from srrl.shapes.pipeline import MAX_TOKENS, WORDS, build_tokenizer
from srrl.shapes.scenes import SHAPES, WORDINGS, all_scenes, coverage, parse, render


def test_every_prompt_parses_to_its_scene():
    scenes = all_scenes()
    assert len(scenes) == len({s.prompt for s in scenes}) == 432
    assert all(parse(s.prompt) == s for s in scenes)


def test_other_wordings_say_the_same_and_no_prompt_twice():
    scenes = all_scenes()
    worded = [(s, s.worded(w)) for s in scenes for w in WORDINGS]
    assert all(parse(prompt) == scene for scene, prompt in worded)
    assert len({prompt for _, prompt in worded} | {s.prompt for s in scenes}) == 5 * 432
    tokens = build_tokenizer()([prompt for _, prompt in worded]).input_ids
    assert max(map(len, tokens)) <= MAX_TOKENS


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "a red circle left of a red square", "a pink circle above a red square"],
)
def test_other_prompts_are_refused_by_name(prompt):
    with pytest.raises(ValueError, match="not a prompt of the shapes world"):
        parse(prompt)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_equal_radius_have_equal_area_and_the_given_centroid(shape):
    centre, radius = torch.tensor([[15.3, 16.8]]), torch.tensor([5.0])
    mask = coverage(shape, centre, radius)[0]
    assert mask.sum().item() == pytest.approx(torch.pi * 25, rel=0.04)
    axis = torch.arange(32) + 0.5
    x, y = (mask.sum(0) * axis).sum() / mask.sum(), (mask.sum(1) * axis).sum() / mask.sum()
    assert (x.item(), y.item()) == pytest.approx((15.3, 16.8), abs=0.2)


def test_rendering_is_a_function_of_the_generator():
    scenes = all_scenes()[:5]
    one, two = (render(scenes, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (5, 3, 32, 32)
    assert one.min() >= 0 and one.max() <= 1


def test_committed_prompt_files_are_those_the_script_makes_and_do_not_overlap():
    sets = prompt_sets()
    for stem, prompts in sets.items():
        assert (
            json.loads((REPOSITORY / "config" / "prompts" / f"{stem}.json").read_text()) == prompts
        )
    train = sets["shapes_unconventional_train"]
    heldout = sets["shapes_unconventional_heldout"]
    assert len(train) == 64 and len(heldout) == 128 and not set(train) & set(heldout)
    assert all(parse(p).unconventional == 2 for p in train + heldout)
    other = sets["shapes_wordings"]
    assert [parse(p).prompt for p in other] == heldout[::2] and not set(other) & set(heldout)


def test_tokenizer_has_one_token_a_word_and_spells_the_rest():
    tokenizer = build_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    assert max(len(tokenizer(s.prompt).input_ids) for s in all_scenes()) <= MAX_TOKENS
    zebra = tokenizer("zebra").input_ids
    assert tokenizer.decode(zebra, skip_special_tokens=True).strip() == "zebra"
