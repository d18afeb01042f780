"""What a prompt file holds, and which prompts a stage draws."""

import codecs
import json
import os
from collections import Counter

import pytest

from srrl.errors import UserError
from srrl.prompts import evenly, load_prompts, stage_prompts, typed, varied_prompts

PROMPTS = [f"prompt {i}" for i in range(10)]


def test_every_prompt_is_drawn_equally_often_and_the_order_is_shuffled():
    drawn = [p for stage in range(15) for p in stage_prompts(PROMPTS, stage, 4, seed=1)]
    assert set(Counter(drawn).values()) == {6}
    assert sorted(drawn[:10]) == sorted(PROMPTS) != drawn[:10]
    assert drawn[:10] != drawn[10:20]


def test_a_stage_depends_on_seed_and_stage_alone():
    assert stage_prompts(PROMPTS, 7, 4, seed=1) == stage_prompts(PROMPTS, 7, 4, seed=1)
    assert stage_prompts(PROMPTS, 7, 4, seed=1) != stage_prompts(PROMPTS, 7, 4, seed=2)


def test_more_prompts_a_stage_than_the_file_has():
    assert Counter(stage_prompts(PROMPTS, 3, 25, seed=1)).most_common()[0][1] <= 4


def test_evenly_spans_the_list():
    assert evenly(PROMPTS, 5) == PROMPTS[::2] and evenly(PROMPTS, 99) == PROMPTS


def test_prompts_may_be_drawn_with_replacement():
    drawn = [stage_prompts(PROMPTS, stage, 10, 1, "replacement") for stage in range(200)]
    assert drawn[3] == stage_prompts(PROMPTS, 3, 10, 1, "replacement") != drawn[4]
    different = sum(len(set(stage)) for stage in drawn) / 200
    assert abs(different - 10 * (1 - 0.9**10)) < 0.3
    counts = Counter(p for stage in drawn for p in stage)
    assert len(counts) == 10 and min(counts.values()) > 140


# White space that str.splitlines takes for the end of a line and no editor does.
INNER = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_lines_end_where_editors_end_them_and_nowhere_else(suffix, tmp_path):
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes(b"one\ntwo\r\nthree\rfour\n\r\n  \n five ")
    assert load_prompts(file) == ["one", "two", "three", "four", "five"]
    for character in INNER:
        file.write_bytes(f"a{character}b\nc".encode())
        assert load_prompts(file) == [f"a{character}b", "c"]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".JSON"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_utf_8_and_marked_utf_16_are_read(suffix, mark, encoding, tmp_path):
    prompts = ["ein Bär 🐻", "un éléphant à Âme", "猫", "ਅਠ"]  # with 0x0a and 0x0d in UTF-16
    text = "\r\n".join(prompts) if suffix == ".txt" else json.dumps(prompts, ensure_ascii=False)
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes(mark + text.encode(encoding))
    assert load_prompts(file) == prompts
    if suffix == ".txt":  # two files, one after the other
        file.write_bytes(mark + f"{text}\n\ufeff{text}".encode(encoding))
        assert load_prompts(file) == prompts * 2


BAD = {
    "latin.txt": ("one\nein Bär".encode("latin-1"), "line 2: byte 0xe4 is not UTF-8: save"),
    "windows.json": ('["one",\n"“two”"]'.encode("cp1252"), "line 2: byte 0x93 is not UTF-8"),
    "gbk.TXT": ("红色".encode("gbk"), "line 1: byte 0xba is not UTF-8"),
    "no mark.txt": ("one".encode("utf-16-le"), r"prompt 1: character 2 .*U\+0000"),
    "32.txt": ("one".encode("utf-32"), r"prompt 1: character 1 .*U\+0000"),
    "32.json": ('["one"]'.encode("utf-32"), "cannot be read as JSON"),
    "odd.txt": (codecs.BOM_UTF16_LE + b"a\0\n\0b", "line 2: byte 0x62 is not UTF-16"),
    "half.txt": (codecs.BOM_UTF16_LE + b"a\0\x3d\xd8b\0", "line 1: byte 0x3d is not UTF-16"),
    "nul.txt": (b"one\n\ntwo \0", r"prompt 2: character 5 is a control character \(U\+0000\)"),
    "escape.json": (rb'["one", "\u001b[31m"]', r"prompt 2: character 1 .*U\+001B"),
    "half.json": (rb'["one", "a cat \ud83d"]', r"prompt 2: character 7 is half .*U\+D83D"),
    "low.json": (rb'["\ude00"]', r"prompt 1: character 1 is half a character \(U\+DE00\)"),
    "dict.json": (b'{"prompts": ["a"]}', r"is a dict.*\.txt with one prompt a line"),
    "item.json": (b'["a", {"b": 1}]', r'\{"b": 1\}, no string'),
    "none.json": (b'["a", null]', "null, no string"),
    "deep.json": (b"[" * 100_000, "cannot be read as JSON"),
    "digits.json": (b"[" + b"1" * 5000 + b"]", "cannot be read as JSON"),
    "lines.jsonl": (
        b'{"prompt": "a"}\n{"prompt": "b"}\n',
        "read as JSON .*Extra data.* must be a list",
    ),
    "table.csv": (b"prompt,seed\na,1\n", "cannot be read as JSON"),
    "list.txt": (b'["a cat", "a dog"]', "holds a JSON list: name it .json"),
    "empty.txt": (b"\n \n", "is empty"),
    "blank.json": (b'["a", " "]', "has an empty prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_one_line_with_the_place(name, tmp_path):
    data, said = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        load_prompts(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert name.endswith(("json", "jsonl", "csv", "list.txt")) or "JSON" not in str(error.value)


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    for path, said in ((tmp_path / "no.txt", "does not exist"), (tmp_path, "a directory")):
        with pytest.raises(UserError, match=said) as error:
            load_prompts(path)
        assert str(path) in str(error.value) and "JSON" not in str(error.value)


def test_a_typed_prompt_is_utf_8_whatever_the_locale():
    assert typed("ein Bär 🐻", "--prompt") == "ein Bär 🐻"
    as_c = "ein Bär".encode().decode("ascii", "surrogateescape")  # as sys.argv has it there
    assert typed(as_c, "--prompt") == "ein Bär"
    with pytest.raises(UserError, match=r"--prompt 'a \\udcff': character 3 is half"):
        typed(os.fsdecode(b"a \xff"), "--prompt")
    with pytest.raises(UserError, match=r"--negative-prompt .*control character \(U\+001B\)"):
        typed("a\x1b[0m", "--negative-prompt")


def test_prompts_that_vary_are_drawn_more_often_and_each_once_before_any_again():
    prompts = [f"prompt {i}" for i in range(6)]
    spreads = {"prompt 0": 0.5, "prompt 1": 0.05, "prompt 2": 0.0, "prompt 3": 0.25}
    drawn = [varied_prompts(prompts, spreads, stage, 3, seed=1) for stage in range(2000)]
    assert all(len(set(some)) == 3 for some in drawn)
    share = {p: sum(p in some for some in drawn) / len(drawn) for p in prompts}
    # Those without scores have the chance of the most varied one.
    assert share["prompt 4"] == pytest.approx(share["prompt 0"], abs=0.05)
    assert share["prompt 0"] > share["prompt 3"] + 0.1 > share["prompt 1"] + 0.2
    assert share["prompt 2"] > 0.05 and share["prompt 2"] == pytest.approx(
        share["prompt 1"], abs=0.05
    )
    assert drawn[7] == varied_prompts(prompts, spreads, 7, 3, seed=1) != drawn[8]
    many = varied_prompts(prompts, spreads, 0, 14, seed=1)
    assert sorted(many[:6]) == sorted(many[6:12]) == prompts
    flat = varied_prompts(prompts, dict.fromkeys(prompts, 0.0), 0, 6, seed=1)
    assert sorted(flat) == prompts
