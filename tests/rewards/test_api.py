"""A judge behind HTTP, against a real server that errs in every way."""

import math

import pytest
import torch

from rewards import api
from rewards.api import APIScore, yes_probability
from rewards.scoring import counts_of
from srrl.errors import UserError
from tests.rewards.server import serving

IMAGES = torch.stack([torch.full((3, 8, 8), v, dtype=torch.uint8) for v in (0, 51, 102, 255)])
PROMPTS = ["a dog", 'a "quoted" {} brace', "a cat", "three"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(api, "FIRST_PAUSE_S", 0.01)


def test_it_asks_vqascores_question_about_each_picture_and_keeps_their_order():
    with serving() as server:
        scores = APIScore(server.url, concurrent=3).score(IMAGES, PROMPTS)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.2, 0.4, 1.0]), atol=1e-6, rtol=0)
    assert {a["question"] for a in server.asked} == {
        f'Does this figure show "{p}"? Please answer yes or no.' for p in PROMPTS
    }
    assert {a["model"] for a in server.asked} == {"served-model"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "429", "garbage", "empty", "hang up", "late"])
def test_a_fault_is_asked_again(fault):
    with serving([fault] * 3) as server:
        judge = APIScore(server.url, model="m", timeout=0.3, concurrent=2)
        scores = judge.score(IMAGES, PROMPTS)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.2, 0.4, 1.0]), atol=1e-6, rtol=0)
    assert len(server.asked) + server.faulted == 7 and server.faulted == 3


def test_after_its_attempts_it_stops_in_one_line_that_says_what_came():
    with serving(["503"] * 99) as server:
        judge = APIScore(server.url, model="m", attempts=3)
        with pytest.raises(UserError, match=r"failed 3 times, at last: status 503: .*run the same"):
            judge.score(IMAGES, PROMPTS)
    with pytest.raises(UserError, match="failed 2 times, at last: ConnectionError"):
        APIScore(server.url, attempts=2)  # it is gone


def test_a_server_that_is_down_at_the_start_is_found_then_also_if_its_model_is_named(capfd):
    with serving() as server:
        url = server.url
    with pytest.raises(UserError, match="failed 2 times, at last: ConnectionError"):
        APIScore(url, model="m", attempts=2)
    said = capfd.readouterr().err  # behind which a long error may be cut
    assert said.startswith("reward 'api': attempt 2 of 2 in 0 s: http://")


def test_its_calls_and_failures_are_counted():
    with serving(["503", "garbage"]) as server:
        judge = APIScore(server.url, model="m", concurrent=1)
        assert judge.counts == {"calls": 1, "failures": 0}  # whether it is there
        judge.score(IMAGES, PROMPTS)
    assert judge.counts == {"calls": 7, "failures": 2}
    assert counts_of({"api": judge, "x": object()}) == {
        "reward/api/calls": 7,
        "reward/api/failures": 2,
    }


def test_what_no_attempt_can_better_stops_at_once():
    with serving(["401"] * 99) as server:
        with pytest.raises(UserError, match=r"says 401: .*key"):
            APIScore(server.url, model="m").score(IMAGES[:1], PROMPTS[:1])
        assert server.faulted == 1
    for options in (
        {"url": "localhost"},
        {"question": "yes?"},
        {"attempts": 0},
        {"key": "NOT_SET"},
    ):
        with pytest.raises(UserError, match=next(iter(options))):
            APIScore(**options)


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving() as server:
        APIScore(server.url, key="MY_KEY").score(IMAGES[:1], PROMPTS[:1])
    assert server.keys == {"Bearer secret"}


def completion(text="Yes", top=()):
    logprobs = None
    if top:
        first = {"token": top[0][0], "logprob": math.log(top[0][1])}
        more = [{"token": t, "logprob": math.log(p)} for t, p in top]
        logprobs = {"content": [{**first, "top_logprobs": more}]}
    return {"choices": [{"message": {"content": text}, "logprobs": logprobs}]}


def test_p_yes_is_the_sum_over_the_ways_to_write_yes():
    told = completion("No", [("No", 0.5), (" yes", 0.1), ("Yes", 0.25), ("YES.", 0.05)])
    assert yes_probability(told) == pytest.approx(0.4)
    assert yes_probability(completion("No", [("No", 0.9), ("Maybe", 0.05)])) == 0
    assert yes_probability(completion("Yes.")) == 1 and yes_probability(completion(" no")) == 0
    with pytest.raises(ValueError, match="neither yes nor no"):
        yes_probability(completion("perhaps"))
