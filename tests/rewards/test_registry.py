"""What a reward may return, and which names are known."""

import pytest
import torch

from rewards import check_prompts, load_rewards, score_all
from srrl.errors import UserError

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
PROMPTS = ["one", "two"]


class Returning:
    def __init__(self, values):
        self.values = values

    def score(self, images, prompts):
        return self.values


class Brightness:
    """A user's reward, importable as tests.rewards.test_registry:Brightness."""

    def score(self, images, prompts):
        return images.float().mean((1, 2, 3))


def test_scores_come_back_as_float32_for_each_reward():
    scores = score_all(
        {"a": Returning(torch.tensor([1, 2])), "b": Returning([0.5, 1.5])}, IMAGES, PROMPTS
    )
    assert scores["a"].dtype == scores["b"].dtype == torch.float32
    assert scores["b"].tolist() == [0.5, 1.5]


@pytest.mark.parametrize("values", [[1.0], [[1.0], [2.0]], 3.0])
def test_a_wrong_count_or_shape_names_the_reward(values):
    with pytest.raises(UserError, match="'mine' returned shape"):
        score_all({"mine": Returning(values)}, IMAGES, PROMPTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_score_names_the_reward_and_the_prompt(bad):
    with pytest.raises(UserError, match=r"'mine' returned .* 'two'"):
        score_all({"mine": Returning([1.0, bad])}, IMAGES, PROMPTS)


def test_a_users_reward_is_loaded_by_module_and_class():
    rewards = load_rewards(["shapes", "tests.rewards.test_registry:Brightness"])
    assert list(rewards) == ["shapes", "tests.rewards.test_registry:Brightness"]
    assert score_all({"b": rewards["tests.rewards.test_registry:Brightness"]}, IMAGES, PROMPTS)[
        "b"
    ].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["nope", "no_such_module:X", "rewards.shapes:Nope"])
def test_unknown_rewards_are_refused_by_name(name):
    with pytest.raises(UserError, match=name.split(":")[0]):
        load_rewards([name])


def test_prompts_a_reward_cannot_judge_are_refused_with_their_file():
    rewards = load_rewards(["shapes"])
    with pytest.raises(UserError, match=r"mine\.json.*a walrus"):
        check_prompts(rewards, ["a walrus"], "mine.json")
