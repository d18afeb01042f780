"""What a reward may return, and which names are known."""

import sys

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


class Costly:
    """Whose making is noted."""

    made = 0

    def __init__(self, model: str = "large"):
        Costly.made += 1

    def score(self, images, prompts):
        return images.float().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("second", "options", "said"),
    [
        ("Nothing", {}, "has no 'Nothing'"),
        ("Brightness", {"kind": 1}, "reward.options of .*Brightness'"),
        ("Brightness", {"class": "vqascore", "modle": "random"}, "argument 'modle'"),
        ("Brightness", {"class": 3}, "unknown reward 3"),
    ],
)
def test_a_mistake_in_the_second_is_found_before_the_first_is_made(second, options, said):
    here = "tests.rewards.test_registry"
    names, before = [f"{here}:Costly", f"{here}:{second}"], Costly.made
    with pytest.raises(UserError, match=said):
        load_rewards(names, {names[1]: options})
    assert Costly.made == before == 0
    load_rewards(names[:1])
    assert sys.modules[here].Costly.made == 1
    sys.modules[here].Costly.made = 0


def test_a_reward_serves_twice_by_another_name():
    options = {"bright": {"class": "tests.rewards.test_registry:Returning", "values": [1, 2]}}
    options["dark"] = {**options["bright"], "values": [-1, -2]}
    scores = score_all(load_rewards(options, options), IMAGES, PROMPTS)
    assert {name: values.tolist() for name, values in scores.items()} == {
        "bright": [1, 2],
        "dark": [-1, -2],
    }


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


@pytest.mark.parametrize("values", [None, ["a", "b"], {"a": 1}, [1j, 2j]])
def test_what_is_not_numbers_is_named(values):
    with pytest.raises(UserError, match=f"'mine' returned a {type(values).__name__} that is not 2"):
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


MINE = """
class Mine:
    def __init__(self, scale=1.0, device="?", dtype="?"):
        if scale < 0:
            raise RuntimeError("scale below 0")
        self.scale, self.device, self.dtype = scale, device, dtype

    def score(self, images, prompts):
        images.fill_(7)
        return [self.scale / len(p.strip()) for p in prompts]


class Plain:
    def score(self, images, prompts):
        weight = images.new_ones((), dtype=float).requires_grad_()
        return weight * images.float().mean((1, 2, 3))


class NoScore:
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's file in the folder that the user is in, with a space in its path."""
    folder = tmp_path / "my rewards"
    folder.mkdir()
    (folder / "my_own_reward.py").write_text(MINE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SRRL_ERROR_FOLDER", str(folder))
    yield folder
    sys.modules.pop("my_own_reward", None)
    sys.path[:] = [p for p in sys.path if p != str(folder)]


@pytest.mark.parametrize("place", ["my_own_reward", "my_own_reward.py", "absolute"])
def test_a_users_file_is_found_from_where_the_user_is(mine, place):
    place = str(mine / "my_own_reward.py") if place == "absolute" else place
    name = f"{place}:Mine"
    (reward,) = load_rewards([name], {name: {"scale": 2.0}}, device="cpu", dtype="bf16").values()
    assert (reward.scale, reward.device, reward.dtype) == (2.0, "cpu", "bf16")


def test_each_reward_has_its_own_copy_and_no_gradients(mine):
    names = ["my_own_reward:Mine", "my_own_reward:Plain"]
    scores = score_all(load_rewards(names), IMAGES.clone(), PROMPTS)
    assert scores[names[1]].tolist() == [0, 0] and not scores[names[1]].requires_grad


def test_an_error_in_a_users_code_is_a_line_with_its_place_and_a_file_with_the_rest(mine):
    name = "my_own_reward:Mine"
    with pytest.raises(
        UserError,
        match=r"'my_own_reward:Mine' failed in its constructor: Runti.*"
        r"scale below 0 \(my_own_reward.py:5 in __init__",
    ):
        load_rewards([name], {name: {"scale": -1.0}})
    with pytest.raises(UserError, match=r"failed in score: ZeroDivisionError: .*reward.py:10 in"):
        score_all(load_rewards([name]), IMAGES, ["", " "])
    kept = (mine / "reward_error.txt").read_text()
    assert "Traceback" in kept and "return [self.scale / len(p.strip())" in kept
    (mine / "broken_reward.py").write_text("import no_such_package")
    with pytest.raises(UserError, match="cannot import 'broken_reward:X': No module named 'no_su"):
        load_rewards(["broken_reward:X"])
    (mine / "wrong_reward.py").write_text("1 / 0")
    with pytest.raises(UserError, match="failed in its module: ZeroDivisionError"):
        load_rewards(["wrong_reward:X"])


def test_an_error_in_a_users_code_is_said_where_its_traceback_cannot_be_kept(mine, monkeypatch):
    (mine / "torn_reward.py").write_text("def")
    with pytest.raises(UserError, match=r"SyntaxError: .*\(torn_reward.py:1; traceback in /"):
        load_rewards(["torn_reward:X"])
    monkeypatch.setenv("SRRL_ERROR_FOLDER", str(mine / "my_own_reward.py"))
    with pytest.raises(UserError, match=r"\(torn_reward.py:1; traceback not kept: .*exists"):
        load_rewards(["torn_reward:X"])
    with pytest.raises(UserError, match=r"py:10 in .*; traceback not kept: .*exists"):
        score_all(load_rewards(["my_own_reward:Mine"]), IMAGES, ["", " "])


def test_what_is_no_reward_is_refused_at_once(mine):
    with pytest.raises(UserError, match="'my_own_reward:NoScore' has no method score"):
        load_rewards(["my_own_reward:NoScore"])
    with pytest.raises(UserError, match=r"reward\.options of 'my_own_reward:Mine'.*'size'"):
        load_rewards(["my_own_reward:Mine"], {"my_own_reward:Mine": {"size": 3}})


@pytest.mark.parametrize("name", ["nope", "no_such_module:X", "rewards.shapes:Nope"])
def test_unknown_rewards_are_refused_by_name(name):
    with pytest.raises(UserError, match=name.split(":")[0]):
        load_rewards([name])


def test_prompts_a_reward_cannot_judge_are_refused_with_their_file():
    rewards = load_rewards(["shapes"])
    with pytest.raises(UserError, match=r"mine\.json.*a walrus"):
        check_prompts(rewards, ["a walrus"], "mine.json")
