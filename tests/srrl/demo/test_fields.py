"""What is typed into the page is read by its field, or refused in one line."""

import pytest

from srrl.demo.fields import MOST_SEED, Field, common, read
from srrl.errors import UserError

FIELDS = [
    *common(2, 10, "Rounds K"),
    Field("eta", "Eta", 0.5, high=1),
    Field("negative", "Negative prompt", ""),
    Field("way", "Way", "actor", choices=("actor", "plain")),
]
TYPED = {"prompt": "a cat"}


def test_what_is_not_given_is_the_default_and_texts_become_numbers():
    defaults = {"seed": 0, "rounds": 2, "eta": 0.5, "negative": "", "way": "actor"}
    assert read(FIELDS, TYPED) == {**TYPED, **defaults}
    typed = {
        "prompt": " Bär \n",
        "seed": str(MOST_SEED),
        "rounds": "10",
        "eta": "1",
        "way": "plain",
    }
    told = read(FIELDS, {**typed, "way": "plain"})
    assert told["prompt"] == " Bär \n"  # as scripts/sample.py, which draws something else without
    assert (told["seed"], told["rounds"], told["eta"], told["way"]) == (MOST_SEED, 10, 1.0, "plain")


def test_a_default_is_within_the_bounds():
    assert read(common(20, 4, "Rounds"), TYPED)["rounds"] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "expected a JSON object"),
        ({}, "Prompt: empty: write one"),
        ({"prompt": " \n"}, "Prompt: empty: write one"),
        ({"prompt": 3}, "Prompt: empty: write one"),
        ({"prompt": "a" * 1001}, "Prompt: 1001 characters: at most 1000"),
        ({"prompt": "a\x00b"}, "Prompt: character 2 is a control character"),
        ({"prompt": "a\ud83d"}, "Prompt: character 2 is half a character"),
        ({**TYPED, "rounds": "11"}, "Rounds K: '11': expected a whole number of 1 to 10"),
        ({**TYPED, "rounds": "2.5"}, "Rounds K: '2.5': expected a whole number"),
        ({**TYPED, "rounds": ""}, "Rounds K: '': expected a whole number"),
        ({**TYPED, "rounds": True}, "Rounds K: 'True': expected a whole number"),
        ({**TYPED, "rounds": "9" * 5000}, "Rounds K: '9{20}': expected a whole number"),
        ({**TYPED, "seed": -1}, "Seed: '-1': expected a whole number of 0 to"),
        ({**TYPED, "eta": "nan"}, "Eta: 'nan': expected a number of 0 to 1"),
        ({**TYPED, "eta": "1e999"}, "Eta: '1e999': expected a number of 0 to 1"),
        ({**TYPED, "eta": [1]}, r"Eta: '\[1\]': expected a number of 0 to 1"),
        ({**TYPED, "way": "x"}, "Way: one of actor, plain"),
        ({**TYPED, "steps": 1}, "unknown value 'steps': known are prompt, seed"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_fields_name(given, said):
    with pytest.raises(UserError, match=said) as error:
        read(FIELDS, given)
    assert "\n" not in str(error.value)
