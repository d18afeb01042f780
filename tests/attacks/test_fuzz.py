"""Whatever stands in a command, a file or a message: it is taken, or refused in a line."""

import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import protocol
from srrl.config import flatten, load_config, load_saved, starts
from srrl.errors import UserError
from srrl.prompts import load_prompts
from srrl.run.best import best, latest
from srrl.run.checkpoint import cut_log
from srrl.run.folder import LOGS, read_lines
from srrl.run.tracking import Tracker
from tests.conftest import PRESET
from tests.texts import texts

pytestmark = pytest.mark.slow
ACCELERATOR = Accelerator()
KNOWN = flatten(load_config([PRESET]))
CASE, KEPT = 20 * 2**20, 50 * 2**20  # bytes that a case may take, and all of a kind may leave
LINE = {"stage": 1, "split": "train", "rounds": 1, "reward": "x", "n": 2, "seeds": 1, "mean": 0.5}
LINE |= {"first_seed": 0, "scores": [0.5, 0.5]}

# Values that a person, a program or a cosmic ray writes where something else is expected.
odd = st.one_of(
    texts(max_size=40),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "",
            " ",
            "nan",
            "-inf",
            "1e308",
            "[]",
            "{}",
            "[[1]]",
            "(1,)",
            "null",
            "true",
            "None",
            "..",
            "/",
        ]
    ),
    st.sampled_from(
        ["a" * 300, "\x00", "\n", "\ud800", "[" * 5000, '{"a": ', "0x10", "1_0", "\u0661"]
    ),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(texts(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def examples(function: Callable) -> Callable:
    """A few hundred in CI, ten thousand where attacks are asked for."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    common = {"deadline": None, "database": None, "suppress_health_check": quiet}

    case, most = function.hypothesis.inner_test, [0]

    @wraps(case)
    def measured(*given: object, **named: object) -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            case(*given, **named)
        finally:
            most[0] = max(most[0], tracemalloc.get_traced_memory()[1] - before)

    function.hypothesis.inner_test = measured

    def chosen(count: int, tmp_path: Path) -> None:
        tracemalloc.start()  # resident memory also has the pages of libraries, touched at any time
        most[0] = 0
        settings(max_examples=count, derandomize=True, **common)(function)(tmp_path)
        ours = tracemalloc.Filter(False, "*/hypothesis/*")  # which notes every case
        kept = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
        tracemalloc.stop()
        size = sum(of_file.size for of_file in kept)
        case_mib, kept_mib = (f"{n / 2**20:.1f} MiB" for n in (most[0], size))
        print(f"{function.__name__}: {count} cases of {case_mib} at the most, kept {kept_mib}")
        assert most[0] < CASE and size < KEPT

    chosen.__name__, chosen.__doc__ = function.__name__, function.__doc__
    whole = pytest.param(10_000, marks=pytest.mark.attack)
    return pytest.mark.parametrize("count", [300, whole], ids=["slice", "all"])(chosen)


@examples
@given(
    key=st.sampled_from([*KNOWN, "nothing", "", "a.b.c", "reward"]), text=odd, joined=st.booleans()
)
def test_overrides(tmp_path, key, text, joined):
    argument = [f"--config.{key}={text}"] if joined else [f"--config.{key}", text]
    try:
        config = load_config([PRESET, *argument])
    except UserError as error:
        assert len(str(error)) < 2000
        return
    json.dumps(flatten(config))


@examples
@given(
    changes=st.dictionaries(st.sampled_from([*KNOWN, "nothing", "method"]), values, max_size=4),
    cut=st.integers(0, 5000) | st.none(),
    before=st.binary(max_size=3),
)
def test_saved_configs(tmp_path, changes, cut, before):
    file = tmp_path / "config.json"
    file.write_bytes(before + json.dumps({**KNOWN, **changes}).encode()[:cut])
    try:
        load_saved(file)
    except UserError as error:
        assert str(file) in str(error)


@examples
@given(
    data=st.binary(max_size=200)
    | values.map(lambda v: json.dumps(v).encode())
    | st.lists(texts(max_size=30), max_size=6).map(
        lambda x: "\r\n".join(x).encode("utf-8", "surrogatepass")
    )
    | st.lists(texts(max_size=30), max_size=6).map(lambda x: json.dumps(x).encode("utf-16")),
    name=st.sampled_from(["prompts.json", "prompts.txt", "prompts"]),
)
def test_prompt_files(tmp_path, data, name):
    file = tmp_path / name
    file.write_bytes(data)
    try:
        prompts = load_prompts(str(file))
    except UserError as error:
        assert str(file) in str(error)
        return
    assert prompts and all(isinstance(p, str) and p.strip() for p in prompts)


@examples
@given(
    lines=st.lists(
        st.binary(max_size=60)
        | values.map(lambda v: json.dumps(v).encode())
        | st.dictionaries(st.sampled_from([*LINE]), values, max_size=3).map(
            lambda changes: json.dumps({**LINE, **changes}).encode()
        ),
        max_size=6,
    ),
    below=st.integers(-1, 5),
)
def test_readers_of_logs(tmp_path, lines, below):
    for name in LOGS:
        (tmp_path / name).write_bytes(b"\n".join(lines))
    assert all(isinstance(line, dict) for line in read_lines(tmp_path / LOGS[0]))
    tracker = Tracker(tmp_path, ACCELERATOR)
    tracker.say = lambda _: None
    tracker.summary()
    tracker.progress(1, {"train": {0: "a"}})
    (tmp_path / "config.json").write_bytes(b"".join(lines[:1]))
    (tmp_path / "environment.json").write_bytes(b"".join(lines[:1]))
    assert best(tmp_path) is None  # no weights are there
    assert isinstance(latest(tmp_path, below), str)
    assert all(isinstance(entry, dict) for entry in starts(tmp_path))
    for name in LOGS:
        cut_log(tmp_path / name, "stage", below)
        assert all(line["stage"] < below for line in read_lines(tmp_path / name))


headers = st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode())
headers |= st.fixed_dictionaries(
    {"payload": values | st.integers(0, 20)},
    optional={"prompts": values | st.just(["a"]), "shape": values | st.just([1, 3, 2, 2])},
).map(lambda v: json.dumps(v).encode())


@examples
@given(frames=st.lists(headers, max_size=3), raw=st.binary(max_size=20), size=st.integers(0, 100))
def test_messages_to_a_worker_and_from_it(tmp_path, frames, raw, size):
    for allowed in (protocol.images_size, lambda _: size):
        one, two = map(protocol.Line, socket.socketpair())
        for frame in frames:
            one.frames.send_bytes(frame)
        one.socket.sendall(raw)
        one.close()
        try:
            header, payload = two.receive(allowed)
            assert len(payload) == header["payload"]
        except ConnectionError as error:
            assert len(str(error)) < 300
        two.close()
    assert len(os.listdir("/proc/self/fd")) < 500
