"""Which prompts a stage draws."""

from collections import Counter

from srrl.prompts import evenly, stage_prompts

PROMPTS = [f"prompt {i}" for i in range(10)]


def test_every_prompt_is_drawn_equally_often_and_the_order_is_shuffled():
    drawn = [p for stage in range(15) for p in stage_prompts(PROMPTS, stage, 4, seed=1)]
    assert set(Counter(drawn).values()) == {6}
    assert sorted(drawn[:10]) == sorted(PROMPTS) != drawn[:10]
    assert drawn[:10] != drawn[10:20]


def test_a_stage_depends_on_seed_and_stage_alone():
    assert stage_prompts(PROMPTS, 7, 4, seed=1) == stage_prompts(PROMPTS, 7, 4, seed=1)
    assert stage_prompts(PROMPTS, 7, 4, seed=1) != stage_prompts(PROMPTS, 7, 4, seed=2)


def test_more_prompts_a_stage_than_the_file_has():
    assert Counter(stage_prompts(PROMPTS, 3, 25, seed=1)).most_common()[0][1] <= 4


def test_evenly_spans_the_list():
    assert evenly(PROMPTS, 5) == PROMPTS[::2] and evenly(PROMPTS, 99) == PROMPTS


def test_prompts_may_be_drawn_with_replacement():
    drawn = [stage_prompts(PROMPTS, stage, 10, 1, "replacement") for stage in range(200)]
    assert drawn[3] == stage_prompts(PROMPTS, 3, 10, 1, "replacement") != drawn[4]
    different = sum(len(set(stage)) for stage in drawn) / 200
    assert abs(different - 10 * (1 - 0.9**10)) < 0.3
    counts = Counter(p for stage in drawn for p in stage)
    assert len(counts) == 10 and min(counts.values()) > 140
