"""What the actor is asked, and how its answers are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srrl.rig.forms import REASONS, answer, embedded_request, read_edit, request
from srrl.rig.graphs import parse_graph
from tests.texts import texts

PROMPT = "a red circle left of a blue square"


@pytest.mark.parametrize(
    ("completion", "text", "reason"),
    [
        (answer("it is green", "make it red"), "make it red", None),
        (" <think>\na\n</think>\n<edit> make  it\nred </edit>\n", "make it red", None),
        ("<think></think><edit>make it red</edit>", "make it red", None),
        (answer("x", ""), None, "empty"),
        (answer("x", " .!"), None, "empty"),
        (answer("x", "A red circle, left of a blue square."), None, "unchanged"),
        (answer("x", "..."), None, "template"),
        (answer("x", "make the [object] red"), None, "template"),
        (answer("x", "<instruction>"), None, "template"),
        (answer("x", "your edit prompt here"), None, "template"),
        (answer("x", "the edit"), None, "template"),
        (answer("x", "make the red edit"), "make the red edit", None),
        ("make it red", None, "malformed"),
        ("<edit>make it red</edit>", None, "malformed"),
        ("<think>a<edit>make it red</edit>", None, "malformed"),
        ("<edit>make it red</edit><think>a</think>", None, "malformed"),
        (answer("x", "make it red") + " and so on", None, "malformed"),
        (answer("x", "make it red") * 2, None, "malformed"),
        ("<think>a</think><think>b</think><edit>make it red</edit>", None, "malformed"),
        ("", None, "malformed"),
    ],
)
def test_an_answer_is_an_edit_or_has_a_reason(completion, text, reason):
    read = read_edit(completion, PROMPT)
    assert (read.text, read.reason, read.completion) == (text, reason, completion)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<edit>", "</edit>", "a", " ", "[", "]"])))
def test_whatever_is_written_is_read(pieces):
    read = read_edit("".join(pieces), PROMPT)
    assert (read.text is None) == (read.reason in REASONS)
    assert read.text is None or read.text.strip() == read.text != ""


@given(texts(), texts())
def test_any_text_in_the_form_is_an_edit_or_no_edit_but_never_an_error(think, edit):
    read = read_edit(answer(think, edit), PROMPT)
    assert read.reason in (None, *REASONS)


def test_requests_name_the_prompt_and_what_failed():
    required = parse_graph(PROMPT).requirements()
    asked = [r.question for r in required]
    assert embedded_request(PROMPT, asked[:2]) == (
        f"prompt: {PROMPT}. failed: is there a red circle? is there a blue square? write an edit."
    )
    for editor in ("instruct", "inversion"):
        text = request(PROMPT, required, editor)
        assert f'"{PROMPT}"' in text and all(q in text for q in asked)
        # Its own example of the form is no edit: a model that says it again is found out.
        form = text[text.index("<think>") :]
        assert read_edit(form, PROMPT).reason == "template"
    with pytest.raises(KeyError):
        request(PROMPT, required, "magic")
