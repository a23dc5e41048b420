"""YAML files: what is read, what is refused, and how files inherit from others."""

import pytest

from gfl.common import yaml_file
from gfl.common.yaml_file import merge, parse_yaml, read_with_bases, read_yaml


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def read(path):
    return read_with_bases(path, lambda tree, source: None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_left_out(write, encoding):
    path = write("")
    path.write_text("seed: 1\n", encoding=encoding)
    assert read_yaml(path) == {"seed": 1}


def test_an_empty_file_is_an_empty_mapping(write):
    assert read_yaml(write("")) == {}


@pytest.mark.parametrize(
    "text",
    [
        "- 1\n- 2\n",
        "hello",
        "optim: {lr: 0.1",
        "optim:\n\tlr: 0.1\n",
        "!!python/object/apply:os.getcwd []",
        "a: 1\na: 2",
        "x: &x {a: 1}\ny: {<<: *x}",
        "a: 2020-13-45",
        "a: 2020-01-01",
        "{[1]: 2}",
        "a: 1:59" + ":59" * 200 + ".0",
        "a: " + "1:" * 1000 + "1",
        f"{2**61 - 1}: 1",
        "a: 1\n\u202e: 1\n- 1",
        "[" * 500 + "]" * 500,
    ],
)
def test_a_file_that_is_not_a_plain_mapping_is_refused(write, refusal, text):
    path = write(text)
    message = refusal(read_yaml, path)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()


def test_a_file_of_more_values_or_bytes_than_a_config_has_is_refused(write, refusal, monkeypatch):
    monkeypatch.setattr(yaml_file, "MAX_NODES", 10)
    monkeypatch.setattr(yaml_file, "MAX_BYTES", 100)
    assert read_yaml(write("a: [1, 2, 3, 4, 5, 6, 7]")) == {"a": [*range(1, 8)]}
    assert "10 values" in refusal(read_yaml, write("a: [1, 2, 3, 4, 5, 6, 7, 8]"))
    assert "10 values" in refusal(read_yaml, write("a: [&b 1, *b, *b, *b, *b, *b, *b, *b]"))
    assert read_yaml(write("a: " + "x" * 97)) == {"a": "x" * 97}
    assert refusal(read_yaml, write("a: " + "x" * 98)).code == "too_large"


def test_bytes_that_are_not_text_and_missing_files_are_refused(tmp_path, refusal):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00optim")
    for path in (tmp_path / "bytes.yaml", tmp_path / "none.yaml", tmp_path):
        assert str(path) in refusal(read_yaml, path)


def test_one_value_is_parsed_as_a_file_is(refusal):
    assert parse_yaml("[{name: ToGray, p: 0.5}]", "command line") == [{"name": "ToGray", "p": 0.5}]
    assert refusal(parse_yaml, "[1", "command line").startswith("command line: ")


def test_mappings_are_merged_and_other_values_replaced():
    under, over = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}, {"a": {"c": [3]}, "d": {"g": 1}, "e": 2}
    assert merge(under, over) == {"a": {"b": 1, "c": [3]}, "d": {"g": 1}, "e": 2}
    assert under["a"] == {"b": 1, "c": [1, 2]}


# Inheritance


def test_values_are_inherited_over_two_levels_relative_to_each_file(write):
    write("a: {x: 3, y: 3, z: [1, 2]}\nseed: 3", "base/root.yaml")
    write("base: root.yaml\na: {x: 2, z: [2]}", "base/middle.yaml")
    assert read(write("base: base/middle.yaml\na: {x: 1}")) == {"a": {"x": 1, "y": 3, "z": [2]}, "seed": 3}


def test_of_several_bases_a_later_one_overrides_an_earlier_and_the_file_all_of_them(write):
    write("{x: 1, y: 1, z: 1, u: 1}", "first.yaml")
    write("{x: 2, y: 2, u: 2}", "deep/second.yaml")
    assert read(write("{base: [first.yaml, deep/second.yaml], x: 3}")) == {"x": 3, "y": 2, "z": 1, "u": 2}
    assert read(write("{base: [deep/second.yaml, first.yaml], x: 3}")) == {"x": 3, "y": 1, "z": 1, "u": 1}


def test_two_bases_may_share_one_which_is_read_once(write):
    write("{x: 1, y: 1}", "root.yaml")
    write("{base: root.yaml, x: 2}", "first.yaml")
    write("{base: root.yaml, y: 2}", "second.yaml")
    checked = []
    path = write("base: [first.yaml, second.yaml]")
    assert read_with_bases(path, lambda tree, source: checked.append(source)) == {"x": 1, "y": 2}
    assert len(checked) == 4


@pytest.mark.parametrize("base", ["[]", "null", ""])
def test_no_base_inherits_nothing(write, base):
    assert read(write(f"base: {base}\nseed: 3")) == {"seed": 3}


@pytest.mark.parametrize("base", ["3", "{a: b.yaml}", "[1]", "[there.yaml, [other.yaml]]", "[there.yaml, null]"])
def test_a_base_that_is_not_a_path_is_refused(write, refusal, base):
    path = write(f"base: {base}")
    message = refusal(read, path)
    assert message.startswith(f"{path}: base ")


def test_a_missing_base_is_named(write, refusal):
    missing = write("seed: 1", "there.yaml").parent / "gone.yaml"
    for base in ("gone.yaml", "[there.yaml, gone.yaml]"):
        assert str(missing) in refusal(read, write(f"base: {base}"))


@pytest.mark.parametrize("target", ["config.yaml", "other.yaml", "[config.yaml]", "[fine.yaml, other.yaml]"])
def test_a_circle_of_bases_is_refused(write, refusal, target):
    write("seed: 1", "fine.yaml")
    write("base: [fine.yaml, sub/../config.yaml]", "other.yaml").parent.joinpath("sub").mkdir()
    assert "config.yaml: " in refusal(read, write(f"base: {target}"))
