"""How values of any size and content appear in messages."""

import csv
import io
import subprocess
from pathlib import Path

import pytest

from gfl.common.text import (
    csv_text,
    describe,
    format_differences,
    format_value,
    is_text,
    list_some,
    markdown_code,
    markdown_text,
    one_line,
    parse_flag,
    printable,
    shell_command,
    short_repr,
    truncate,
    truncate_middle,
)

LARGE = {"text": "x" * 10**6, "list": [9] * 10**5, "nested": {"a": ["b" * 100] * 100}, "lines": "a\nb" * 99}


@pytest.mark.parametrize("value", [*LARGE.values(), 10**5000], ids=[*LARGE, "number"])
def test_a_value_of_any_size_is_one_short_line(value):
    for text in (short_repr(value), format_value(value), short_repr([value])):
        assert len(text) <= 80
        assert text.isprintable()


def test_text_that_can_be_printed_appears_as_it_is():
    assert format_value("runs/ünicode") == "runs/ünicode"
    assert format_value("") == "''"
    assert format_value("a\x1b[31m") == "'a\\x1b[31m'"
    assert format_value(0.5) == "0.5"
    assert printable("a\x1b[31m\n") == "a?[31m?"


def test_dictionaries_keep_the_order_of_their_keys():
    assert short_repr({"b": 1, "a": 2}) == "{'b': 1, 'a': 2}"


def test_a_value_is_described_with_its_type():
    assert (describe(3), describe("3"), describe(None)) == ("3 (int)", "'3' (str)", "nothing")


def test_text_is_shortened_at_its_end_or_in_its_middle():
    assert (truncate("abcdefgh", 8), truncate("abcdefghi", 8)) == ("abcdefgh", "abcde...")
    assert (truncate_middle("abcdefghi", 9), truncate_middle("abcdefghij", 9)) == ("abcdefghi", "abc...hij")
    assert one_line(ValueError("a\n  b")) == "a b"


def test_a_long_list_ends_with_its_rest():
    assert list_some(["a", "b", "c"]) == "a, b, c"
    assert list_some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_control_characters_and_surrogates_are_not_text():
    assert is_text("ünïcode 漢字")
    assert not any(map(is_text, ("a\nb", "\x00", "\ud800")))


def test_marks_are_read_as_tools_write_them():
    assert all(parse_flag(value) is True for value in (1, "1", 1.0, True, "True", " yes", -1, "2"))
    assert all(parse_flag(value) is False for value in (0, "0", "0.0", False, "no", None, "", "Unspecified"))
    assert all(parse_flag(value) is None for value in ("maybe", [], {}))


def test_differences_are_listed_by_key():
    assert format_differences({"optim.lr": (0.01, 0.02), "seed": (None, 1)}) == [
        "optim.lr: 0.01 -> 0.02",
        "seed: None -> 1",
    ]


# Names that bite

NAMES = [
    "a b",
    "it's",
    "$(touch x)",
    "-rf",
    "--help",
    "~",
    "a\nb",
    "\x1b[2J",
    "\udcff.png",
    "\u202e",
    "*",
    "\\x41",
    "é",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_means_the_same_to_a_shell_as_the_name_does_to_us(name, tmp_path):
    command = shell_command("printf", "%s", "--", Path(name))
    assert command.isprintable()
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True)
    printed = done.stdout.decode("utf-8", "surrogateescape").removeprefix("--")
    assert (Path(printed), printed[:1] == "-") == (Path(name), False)


@pytest.mark.parametrize("name", [*NAMES, "<img src=x>", "a|b", "`b`", "[a](b)", "&lt;", "$x$"])
def test_a_name_is_text_in_markdown(name):
    text = markdown_text(name)
    assert text.isprintable()
    assert not set("<>") & set(text)
    for mark in "`[]|*$":
        assert text.count(mark) == text.count(f"\\{mark}")


def test_code_in_markdown_ends_where_it_should():
    assert markdown_code("runs/a b") == "`runs/a b`"
    assert markdown_code("a`b``c\n") == "``` a`b``c? ```"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\t=1", " =1"])
def test_no_name_is_a_formula_in_a_table(name):
    file = io.StringIO()
    csv.writer(file).writerow([csv_text(name), "=x"[1:]])
    assert next(csv.reader(io.StringIO(file.getvalue())))[0].lstrip()[0] not in "=+-@"
    assert csv_text("GFL, 2x (ours)") == "GFL, 2x (ours)"
