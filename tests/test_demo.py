"""scripts/demo.py refuses in one line, before a model is loaded."""

import socket
import sys

import pytest

from scripts import demo
from srrl.config import REPOSITORY
from srrl.errors import UserError
from tests.conftest import PRESET
from tests.lines import shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --checkpoint, or --config"),
        (["--checkpoint", "x", "--max-rounds", "0"], "--max-rounds 0: at least 1"),
        (["--checkpoint", "x", "--port", "65536"], "--port 65536 is out of range: 0 to 65535"),
        (["--config", "config/stage_process.py:huge"], "unknown preset 'huge'"),
        (["--share", PRESET], "unknown argument '--share'"),
    ],
)
def test_arguments_are_refused_in_one_line(given, said):
    with pytest.raises(UserError, match=said):
        demo.main(given)


@pytest.mark.parametrize("missing", [["uvicorn"], ["starlette", "uvicorn"]])
def test_a_missing_extra_is_one_line_with_the_command(missing, monkeypatch):
    for name in demo.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None if name in missing else sys)
    with pytest.raises(UserError) as error:
        demo.main([PRESET])
    assert f"the demo needs {' and '.join(missing)}: run `" in str(error.value)
    assert f"-m pip install -e '{REPOSITORY}[demo]'`" in str(error.value)


def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_named():
    with demo.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: cannot listen there \(.*in use"):
            demo.listening("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port 0: cannot listen there"):
        demo.listening("192.0.2.1", 0)
    with pytest.raises(UserError, match="cannot listen there"):
        demo.listening("a..b", 0)


def test_the_port_is_free_again_at_once():
    with demo.listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.accept()[0].close()
    demo.listening("127.0.0.1", port).close()


def test_a_page_for_others_says_that_they_can_draw(capsys):
    pytest.importorskip("uvicorn", reason="the extra `demo` is not installed")
    given = ["--host", "0.0.0.0", "--port", "0", "--config.prompts.heldout=/nowhere.json"]
    with pytest.raises(UserError, match=r"'/nowhere\.json' does not exist"):
        demo.main([PRESET, *given])
    assert "of this machine can draw" in shown(capsys.readouterr().err)
