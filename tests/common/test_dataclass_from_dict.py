"""Dataclasses from plain data: what is refused, and what the message must name."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from gfl.common.dataclass_from_dict import Check, above, at_least, between, check_plain, dataclass_from_dict


@dataclass(frozen=True)
class Inner:
    top_k: Annotated[int, between(1, 9)] = 4
    rate: Annotated[float, above(0)] = 0.5
    share: Annotated[float, at_least(0)] = 0.0
    flag: bool = True
    level: Literal[-1, 0, 1] = 0
    kind: Literal["none", "v1"] = "none"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    sizes: Annotated[tuple[int, ...], Check("rising", lambda sizes: list(sizes) == sorted(sizes))] = (1, 2)
    offset: float | tuple[float, ...] = 0.0
    options: tuple[dict[str, Any], ...] = ()
    name: str = "x"


def build(tree):
    return dataclass_from_dict(Outer, tree, "a.yaml")


def test_nothing_given_is_the_defaults():
    assert build({}) == Outer()


def test_values_are_converted_to_the_types_of_the_fields():
    made = build({"inner": {"rate": 1, "level": -1}, "sizes": [3, 5], "offset": [0, 0.5], "options": [{"p": [1]}]})
    assert made == Outer(Inner(rate=1.0, level=-1), (3, 5), (0.0, 0.5), ({"p": [1]},))
    assert [type(value) for value in (made.inner.rate, *made.offset)] == [float] * 3
    assert build({"offset": 1}).offset == 1.0


@pytest.mark.parametrize(
    ("tree", "key", "hint"),
    [
        ({"iner": {}}, "iner", "inner"),
        ({"inner": {"topk": 5}}, "inner.topk", "inner.top_k"),
        ({"inner": {"zzz": 1}}, "inner.zzz", "top_k, rate, share"),
        ({"top_k": 5}, "top_k", "inner.top_k"),  # of another section
        ({"rat": 5}, "rat", "inner.rate"),
        ({"inner": {"sizes": [1]}}, "inner.sizes", "sizes"),
        ({1: 2}, "1", "inner"),
    ],
)
def test_an_unknown_key_is_named_with_those_it_may_be(refusal, tree, key, hint):
    message = refusal(build, tree)
    assert message.startswith("a.yaml: ")
    assert f" {key};" in message
    assert hint in message.partition(";")[2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inner", 5),
        ("inner", [1]),
        ("inner.top_k", "many"),
        ("inner.top_k", True),
        ("inner.top_k", 4.0),
        ("inner.top_k", None),
        ("inner.top_k", 2**63),
        ("inner.top_k", 0),
        ("inner.top_k", 10),
        ("inner.rate", True),
        ("inner.rate", [0.1]),
        ("inner.rate", "1e-4"),
        ("inner.rate", 0.0),
        ("inner.rate", math.nan),
        ("inner.rate", math.inf),
        pytest.param("inner.rate", 10**400, id="huge"),
        ("inner.share", -0.1),
        ("inner.flag", 1),
        ("inner.level", True),
        ("inner.level", 2),
        ("inner.kind", "v2"),
        ("inner.kind", None),
        ("sizes", 8),
        ("sizes[1]", [8, "x"]),
        ("sizes", [2, 1]),
        ("offset", "half"),
        ("offset[1]", [0.5, "half"]),
        ("offset[0]", [[0.5]]),
        ("options", {"name": "ToGray"}),
        ("options[0]", ["ToGray"]),
        ("options[0]", [{1: 2}]),
        ("name", 3),
        ("name", True),
        ("name", "a\x1b[31m"),
        ("name", "\ud800"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(refusal, key, value):
    tree = value
    for part in reversed(key.partition("[")[0].split(".")):
        tree = {part: tree}
    assert refusal(build, tree).startswith(f"a.yaml: {key} must ")


def test_a_number_that_yaml_reads_as_text_is_refused_with_a_spelling_that_works(refusal):
    for text, spelling in (("1e-4", "1.0e-4"), ("2E-3", "2.0e-3"), ("1.5e5", "1.5e+5")):
        assert refusal(build, {"inner": {"rate": text}}).endswith(f"write {spelling}")


@pytest.mark.parametrize("wrong", [{"a": {1, 2}}, [object()], {"a": [b"x"]}])
def test_plain_data_holds_nothing_but_numbers_text_lists_and_mappings(refusal, wrong):
    check_plain({"a": [1, 2.5, "x", True, None, {"b": []}]}, "a.yaml")
    assert refusal(check_plain, wrong, "a.yaml").startswith("a.yaml: ")


def test_plain_data_that_is_endless_deep_or_huge_is_refused(refusal):
    endless, deep = {}, {}
    endless["self"] = endless
    for _ in range(60):
        deep = {"a": deep}
    many = [[0] * 1000] * 200
    for wrong in (endless, deep, many):
        assert refusal(check_plain, wrong, "a.yaml").startswith("a.yaml: ")
