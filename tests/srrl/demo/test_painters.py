"""Who draws for a page: what an answer depends on, and which checkpoints a run's page is of."""

import json
from io import BytesIO

import pytest
from PIL import Image

from srrl.config import flatten, load_config
from srrl.demo.chosen import painter_of
from srrl.demo.fields import read
from srrl.demo.rounds import Rounds
from srrl.demo.strips import config_of
from srrl.drawing import draw
from srrl.errors import UserError
from srrl.models.locate import locate
from srrl.models.weights import LORA_FILE
from srrl.run.pictures import to_pil
from tests.conftest import PRESET, PROMPTS

TINY = PRESET.removeprefix("--config=")


@pytest.fixture(scope="module")
def painter() -> Rounds:
    return painter_of(None, TINY, (), 3, True)


def drawn(painter: Rounds, **given) -> list[bytes]:
    """The pixels of each round."""
    answer = painter.draw(read(painter.fields, {"prompt": PROMPTS[0], **given}))
    return [Image.open(BytesIO(card.png)).tobytes() for card in answer.cards]


@pytest.mark.slow
def test_defaults_are_the_configs_and_the_samples_those_of_drawing(painter):
    defaults = read(painter.fields, {"prompt": "x"})
    assert (defaults["steps"], defaults["guidance_scale"], defaults["eta"]) == (10, 5.0, 1.0)
    policy, settings = painter.policy, painter.settings
    images = draw(policy, settings, {}, PROMPTS[:1], [7], 3).images
    assert drawn(painter, rounds=3, seed=7) == [to_pil(image[0]).tobytes() for image in images]


@pytest.mark.slow
def test_a_sample_does_not_depend_on_what_was_drawn_before(painter):
    before = drawn(painter, rounds=2)
    for given in ({"negative_prompt": "red"}, {"steps": 3}, {"eta": 0}, {"guidance_scale": 2}):
        assert drawn(painter, rounds=2, **given) != before
        assert drawn(painter, rounds=2) == before


def test_scores_and_lines_are_of_the_sample(painter):
    answer = painter.draw(read(painter.fields, {"prompt": PROMPTS[0], "rounds": 2}))
    assert [card.title for card in answer.cards] == ["Round 1", "Round 2"]
    text = Image.open(BytesIO(answer.cards[0].png)).text
    assert json.loads(text["scores"]) == answer.cards[0].scores and text["round"] == "1"
    assert answer.notes == ["seed 0, guidance 5, eta 1, 10 steps"]
    assert painter.examples and painter.facts["Rewards"] == "shapes"


def test_a_prompt_that_the_reward_cannot_judge_is_refused(painter):
    with pytest.raises(UserError, match="Prompt: reward 'shapes' cannot judge it"):
        drawn(painter, prompt="a walrus")


def write_phase(folder, phase: str, phases: str) -> None:
    checkpoint = folder / phase / "checkpoints" / "stage_0002"
    checkpoint.mkdir(parents=True)
    (checkpoint / LORA_FILE).touch()
    config = load_config(["--config=config/rig.py:tiny", f"--config.phases={phases}"], "", ["rig"])
    (folder / phase / "config.json").write_text(json.dumps(flatten(config)))


def test_a_page_of_an_editor_has_the_actor_on_whose_words_it_was_trained(tmp_path):
    write_phase(tmp_path, "editor", '["actor", "editor"]')
    found = locate(tmp_path / "editor", "it")
    with pytest.raises(UserError, match=r"it: its actor .*/actor: no such folder or file"):
        config_of(found, "it")
    write_phase(tmp_path, "actor", '["actor"]')
    config = config_of(found, "it")
    assert config.actor.lora == str(tmp_path / "actor" / "checkpoints" / "stage_0002")
    assert config.editor.lora == str(found.checkpoint)
    alone = config_of(locate(tmp_path / "actor", "it"), "it")
    assert alone.actor.lora == config.actor.lora and alone.editor.lora is None


def test_a_run_has_its_own_config(tmp_path):
    write_phase(tmp_path, "actor", '["actor"]')
    with pytest.raises(UserError, match=r"--config\.seed=1: only beside --config; a run has its"):
        painter_of(tmp_path / "actor", None, ["--config.seed=1"], 3, True)
