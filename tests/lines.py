"""The lines that a user can be shown: those in the code, those in lines.csv, those a test has seen.

A line is what a UserError, srrl.errors.report or a print to stderr is given. Its text has {} for
every value; where a value is one of several texts of the same function, each makes a line.
"""

import ast
import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import srrl.errors
from srrl.config import REPOSITORY
from srrl.errors import UserError

TABLE = Path(__file__).with_name("lines.csv")
ROOMS = ("srrl", "rewards", "scripts", "config")
# Functions whose returned texts are shown as they are.
RETURNED = {("scripts/launch.py", "death")}
KIND = re.compile(r"^class (\w+)\(UserError\)", re.M)  # of UserError
SHOWING = r"report\(|_stop\(|sys\.stderr|(?:{})\("
ERROR = "error: "
TELLING = 7  # letters of a text that a command's output is searched for


class Row(NamedTuple):
    """A line of the table. code: the command's exit code, 0 where it goes on; test: a node id."""

    module: str
    function: str
    says: str
    code: str
    test: str


@dataclass(frozen=True)
class Site:
    """A line of the code: where it is, and its text."""

    module: str
    function: str
    says: str
    first: int
    last: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.function, self.says


def table() -> list[Row]:
    with open(TABLE, newline="", encoding="utf-8") as file:
        return [Row(**row) for row in csv.DictReader(file)]


@cache
def by_test() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in table():
        found.setdefault(row.test, []).append(row)
    return found


def gone(tests: set[str]) -> list[str]:
    """Of the tests that rows name those that are not among these, which are all of some files."""
    files = {test.partition("::")[0] for test in tests}
    named = {row.test for row in table() if row.test.partition("::")[0] in files}
    return sorted(named - tests)


# ---------------------------------------------------------------------- what the code can say


def files() -> list[Path]:
    return sorted(file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))


@cache
def kinds() -> set[str]:
    """The names of UserError and of the classes made from it."""
    found = (KIND.findall(file.read_text(encoding="utf-8")) for file in files())
    return {"UserError", *(name for names in found for name in names)}


def sites() -> list[Site]:
    """Every line in the code."""
    return [site for file in files() for site in sites_of(file)]


@cache
def sites_of(file: Path) -> list[Site]:
    """A file's. Of those of one function with one text the second one is named FUNCTION 2."""
    found, seen, module = [], Counter(), file.relative_to(REPOSITORY).as_posix()
    source = file.read_text(encoding="utf-8")
    if not re.search(SHOWING.format("|".join(kinds())), source):  # sooner than to parse it
        return []
    for function, texts, node in said(ast.parse(source), module):
        for text in texts:
            seen[function, text] += 1
            number = seen[function, text]
            name = f"{function} {number}" if number > 1 else function
            found.append(Site(module, name, text, node.lineno, node.end_lineno))
    return found


def said(tree: ast.Module, module: str) -> Iterator[tuple[str, list[str], ast.AST]]:
    """(function, texts, node) of each expression that is shown."""
    ours = module == "srrl/errors.py" or any(
        isinstance(node, ast.ImportFrom)
        and node.module == "srrl.errors"
        and "report" in {alias.name for alias in node.names}
        for node in tree.body
    )
    for function, own in functions(tree):
        for node in own:
            texts = []
            if isinstance(node, ast.Call) and shows(node, ours):
                texts = texts_of(node.args[0], assigned(own, node.lineno))
                if node.func.id not in kinds():  # what passes on what others say is no line
                    texts = [text for text in texts if re.search("[a-z]", text.removeprefix(ERROR))]
            elif isinstance(node, ast.Return) and (module, function) in RETURNED:
                texts = texts_of(node.value, assigned(own, node.lineno))
            yield function, texts, node


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST]]]:
    """Each function's name and nodes, in their order, without those of functions in it; what is
    outside of all is "module"."""
    waiting: list[tuple[str, ast.AST]] = [("module", tree)]
    for name, top in waiting:
        own, below = [], [*ast.iter_child_nodes(top)][::-1]
        while below:
            node = below.pop()
            if isinstance(node, ast.FunctionDef):
                waiting.append((node.name, node))
            else:
                own.append(node)
                below += [*ast.iter_child_nodes(node)][::-1]
        yield name, own


def shows(call: ast.Call, ours: bool) -> bool:
    """Whether a call shows its first argument; ours: report is that of srrl.errors."""
    name = getattr(call.func, "id", None)
    if name == "print":
        streams = [ast.unparse(word.value) for word in call.keywords if word.arg == "file"]
        return streams == ["sys.stderr"]
    return name in kinds() or name == "_stop" or (name == "report" and ours)


def assigned(own: list[ast.AST], line: int) -> dict[str, list[ast.expr | None]]:
    """What a function's names are set to before a line; None where it is no expression alone."""
    values: dict[str, list[ast.expr | None]] = {}
    longer = [node.target for node in own if isinstance(node, ast.AugAssign)]
    for node in own:
        if node in longer:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.lineno < line:
            values.setdefault(node.id, []).append(None)
    for node in own:
        if isinstance(node, ast.Assign) and node.lineno < line:
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values[target.id].remove(None)
                    values[target.id].append(node.value)
    return values


def texts_of(node: ast.expr | None, known: dict[str, list[ast.expr | None]]) -> list[str]:
    """The texts that an expression can be, {} for what is no text of the function's own."""
    if isinstance(node, ast.Constant):
        found = [node.value] if isinstance(node.value, str) else []
    elif isinstance(node, ast.JoinedStr):
        parts = [texts_of(part, known) for part in node.values]
        found = ["".join(chosen) for chosen in product(*parts)]
    elif isinstance(node, ast.FormattedValue) and node.conversion == -1 and not node.format_spec:
        found = texts_of(node.value, known)
    elif isinstance(node, ast.IfExp):
        found = texts_of(node.body, known) + texts_of(node.orelse, known)
    elif isinstance(node, ast.BoolOp):
        found = [text for value in node.values for text in texts_of(value, known)]
    elif isinstance(node, ast.Name) and node.id in known:
        others = {name: v for name, v in known.items() if name != node.id}
        found = [text for value in known[node.id] for text in texts_of(value, others)]
    else:
        found = ["{}"]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------- what a test has seen

RAISED: list[tuple[str, int, str]] = []  # a UserError's file, line and message
SHOWN: list[str] = []  # what commands have written


def shown(text: str) -> str:
    """Note what a command has written, and give it back."""
    SHOWN.append(text)
    return text


def watch() -> None:
    """Note every UserError that is made in this process from now on, and every report."""
    begin, report = UserError.__init__, srrl.errors.report

    def noted(error: UserError, *arguments: object) -> None:
        begin(error, *arguments)
        frame = sys._getframe(1)
        while frame.f_locals.get("self") is error:  # the constructor of a kind of it
            frame = frame.f_back
        RAISED.append((frame.f_code.co_filename, frame.f_lineno, " ".join(str(error).split())))

    def told(message: str) -> None:
        SHOWN.append(" ".join(message.split()))
        report(message)

    UserError.__init__, srrl.errors.report = noted, told


@cache
def pattern(says: str) -> re.Pattern[str]:
    """What a line looks like, as srrl.errors.report writes it, whatever its values are."""
    return re.compile(".*?".join(map(re.escape, " ".join(says.split()).split("{}"))))


def seen() -> set[tuple[str, str, str]]:
    """The keys of the sites whose UserErrors have been made: of the texts of one place that fit the
    longest."""
    found = set()
    for file, line, message in RAISED:
        path = Path(file)
        if not path.is_relative_to(REPOSITORY):
            continue
        there = (site for site in sites_of(path) if site.first <= line <= site.last)
        fitting = [site for site in there if pattern(site.says).fullmatch(message)]
        most = max((len(s.says.replace("{}", "")) for s in fitting), default=0)
        found |= {s.key for s in fitting if len(s.says.replace("{}", "")) == most}
    return found


def written(row: Row) -> bool:
    """Whether a command has written the line. A text of few letters could be any."""
    letters = sum(map(str.isalpha, row.says))
    return letters >= TELLING and any(pattern(row.says).search(text) for text in SHOWN)


def unseen(test: str) -> list[Row]:
    """The rows that name a test, and have not been seen since `forget`."""
    rows = by_test().get(test, [])
    raised = seen() if rows else set()
    return [row for row in rows if row[:3] not in raised and not written(row)]


def forget() -> None:
    RAISED.clear()
    SHOWN.clear()


def keep(test: str) -> None:
    """Add the lines that a test has seen to the file of the environment's SRRL_LINES, as rows."""
    with open(os.environ["SRRL_LINES"], "a", newline="", encoding="utf-8") as file:
        written_rows = [Row(*s.key, "2", test) for s in sites() if written(Row(*s.key, "", ""))]
        csv.writer(file).writerows({*written_rows, *(Row(*key, "2", test) for key in seen())})
