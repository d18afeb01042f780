"""Every line that a user can be shown stands in lines.csv, with a test that shows it: what the test
has really shown, conftest.py asks after it has run."""

import ast
import csv
import io
import re
from functools import cache

import pytest

from srrl.config import REPOSITORY, load_config
from srrl.errors import UserError
from tests import lines

TABLE = lines.table()


def as_rows(keys: set[tuple[str, str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((*key, "2", "TEST") for key in sorted(keys))
    return text.getvalue()


@cache
def test_functions(file: str) -> dict[str, str]:
    """The source of each function of a test file."""
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(text, node) for node in found}


test_functions.__test__ = False


def source_of(row: lines.Row) -> str:
    """A test's source, and that of the functions beside it that it calls."""
    file, _, name = row.test.partition("::")
    functions = test_functions(file) if file else {}
    own = functions.get(name.partition("[")[0], "")
    called = set(re.findall(r"(\w+)\(", own)) & functions.keys()
    return own and own + "".join(functions[other] for other in called)


def test_the_table_has_the_lines_of_the_code_and_no_others():
    known, there = {row[:3] for row in TABLE}, {site.key for site in lines.sites()}
    assert not there - known, f"tests/lines.csv lacks, with a test:\n{as_rows(there - known)}"
    assert not known - there, f"tests/lines.csv has and nothing says:\n{as_rows(known - there)}"


def test_the_table_is_sorted_and_has_a_line_once():
    keys = [row[:3] for row in TABLE]
    assert keys == sorted(set(keys))


def test_every_line_has_a_test_that_is_there():
    assert not [row for row in TABLE if not source_of(row)]


def test_a_test_that_is_gone_is_named():
    tests = {row.test for row in TABLE if row.test.startswith("tests/srrl/test_config.py")}
    assert lines.gone(tests) == [] and lines.gone(tests - {min(tests)}) == [min(tests)]


def test_other_exit_codes_than_2_are_asserted_by_their_tests():
    for row in TABLE:
        code = {"128+n": r"128 \+ \w+"}.get(row.code, row.code)
        asserted = re.search(rf"(check=|== |\{{){code}", source_of(row))
        assert row.code in ("0", "2") or asserted, row


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('def f(x): raise UserError(f"{x}: " "bad" f" at {x!r}")', ["{}: bad at {}"]),
        ('def f(x):\n a = "b" if x else f"c{x}"\n UserError(f"a {a}")', ["a b", "a c{}"]),
        ('def f(x):\n for a in x:\n  a += "b"\n  UserError(f"a {a}")', ["a {}"]),
        ('def f(x):\n a = None\n a = x or "b"\n UserError(a)\n a = "c"', ["{}", "b"]),
        ('def f(x):\n print(x)\n print("b", file=sys.stderr)\n report("c")', ["b"]),
        ('from srrl.errors import report\ndef f(): report("c"); report(f"error: {f}")', ["c"]),
    ],
)
def test_texts_are_read_off_the_code(code, said):
    found = lines.said(ast.parse(code), "scripts/x.py")
    assert [text for _, texts, _ in found for text in texts] == said


def test_a_line_that_a_test_does_not_show_is_missed(monkeypatch):
    row = next(row for row in TABLE if row.says.startswith("--config.{}={}: expected"))
    monkeypatch.setattr(lines, "by_test", lambda: {"x": [row]})
    monkeypatch.setattr(lines, "RAISED", [])
    monkeypatch.setattr(lines, "SHOWN", [])
    assert lines.unseen("x") == [row]
    lines.shown("error: --config.seed=x: expected int\n")
    assert lines.unseen("x") == []
    lines.forget()
    with pytest.raises(UserError):
        load_config(["--config=config/stage_process.py:tiny", "--config.seed=x"])
    assert lines.unseen("x") == []
