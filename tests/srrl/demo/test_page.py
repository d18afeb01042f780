"""The page and its server around a painter, here a small one: what is shown, refused, and waits."""

import asyncio
import base64
import re
import threading
from concurrent.futures import Future
from io import BytesIO

import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="the extra `demo` is not installed")

from starlette.requests import Request
from starlette.testclient import TestClient

from srrl.demo.answers import Answer, Card, png
from srrl.demo.desk import LONGEST_LINE, Desk
from srrl.demo.fields import Field, common
from srrl.demo.page import application, waited
from srrl.errors import UserError

HOSTILE = "</script><img src=x onerror=alert(1)>"
HOSTS = ["testserver", "[::1]"]


class Plain:
    """A Painter of single colours, as bright as its seed."""

    name, about, facts = HOSTILE, "Draws a colour.", {"Model": HOSTILE}
    examples = (HOSTILE, *(f"prompt {i}" for i in range(9)))
    fields = (*common(1, 3, "Rounds"), Field("way", "Way", "a", choices=("a", "b"), advanced=True))

    def draw(self, values: dict) -> Answer:
        if values["seed"] > 255:
            raise UserError(f"Seed: {values['seed']} is too\nbright")
        image = torch.full((3, 8, 8), values["seed"], dtype=torch.uint8)
        shown = {"prompt": values["prompt"], "rate": 1 / (values["seed"] - 13)}
        cards = [Card("One", png(image, shown), "one.png", {"my.file:Reward": 0.5})]
        return Answer(values["prompt"], cards, ["a note"])


@pytest.fixture(scope="module")
def client():
    desk = Desk(Plain())
    threading.Thread(target=desk.serve, daemon=True).start()
    return TestClient(application(desk, HOSTS), raise_server_exceptions=False)


def test_a_drawing_comes_back_with_its_scores_and_what_it_was_drawn_from(client):
    told = client.post("/draw", json={"prompt": "grey", "seed": "99"}).json()
    assert told["title"] == "grey" and told["notes"] == ["a note"]
    (card,) = told["cards"]
    assert card["scores"] == {"Reward": 0.5} and card["file"] == "one.png"
    picture = Image.open(BytesIO(base64.b64decode(card["png"])))
    assert picture.getpixel((0, 0)) == (99, 99, 99) and picture.text["prompt"] == "grey"


def test_the_page_has_its_fields_and_examples_and_nothing_of_other_places(client):
    shown = client.get("/")
    page = shown.text
    for name in ("prompt", "seed", "rounds", "way"):
        assert f'name="{name}"' in page
    assert page.count(">prompt 3</button>") == 1 and "All 10 held-out prompts" in page
    assert HOSTILE not in page and page.count("&lt;/script&gt;") >= 3
    assert not re.findall(r"(?:https?:)?//[\w.]+\.\w+", page)
    assert "default-src 'none'" in shown.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"json": {"prompt": ""}}, "Prompt: empty: write one"),
        ({"json": {"prompt": "x", "seed": 256}}, "Seed: 256 is too bright"),
        ({"json": [1]}, "expected a JSON object with the form's values"),
        (
            {"content": b"{", "headers": {"content-type": "application/json; charset=utf-8"}},
            "expected a JSON object with the form's values",
        ),
        ({"data": {"prompt": "x"}}, "expected the content type application/json"),
    ],
)
def test_what_is_wrong_is_one_line_on_the_page(given, said, client):
    told = client.post("/draw", **given)
    assert told.status_code == 400 and told.json() == {"error": said}


def test_what_nobody_foresaw_is_told_and_the_next_one_is_drawn(client):
    told = client.post("/draw", json={"prompt": "x", "seed": 13})
    assert told.status_code == 500
    said = "drawing failed (ZeroDivisionError: division by zero): the server's terminal says where"
    assert told.json() == {"error": said}
    assert client.post("/draw", json={"prompt": "x"}).status_code == 200


def test_other_names_of_this_machine_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "[::1]:7860"}).status_code == 200


def test_who_leaves_waits_no_longer():
    async def receive() -> dict:
        return {"type": "http.disconnect"}

    future = Future()
    assert asyncio.run(waited(Request({"type": "http"}, receive), future)) is None
    assert future.cancelled()


def test_who_left_is_not_drawn_for_and_a_long_line_is_refused():
    desk = Desk(Plain())
    line = [desk.ask({"prompt": "x", "seed": i}) for i in range(LONGEST_LINE)]
    with pytest.raises(UserError, match=f"{LONGEST_LINE} others are waiting: try again later"):
        desk.ask({"prompt": "x"})
    assert all(isinstance(future, Future) for future in line) and line[1].cancel()
    threading.Thread(target=desk.serve, daemon=True).start()
    line.pop(1)
    drawn = [future.result(60).cards[0].png for future in line if future is not line[12]]
    assert len(set(drawn)) == LONGEST_LINE - 2
