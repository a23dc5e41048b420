"""The file of measures: what is written is read again, anything else is refused."""

import argparse

import pytest
from printed_commands import ROOT

from gfl.ablation.measures import Measured, Value
from gfl.ablation.measures_file import format_lines, measure_line, read_lines, read_measures, values_of


def measured(name, seed, value, detail="", **ap):
    return Measured(name, seed, Value(value, detail), ap)


def lines_of(*values):
    return {(each.name, each.seed): measure_line(each, "a machine") for each in values}


def test_written_measures_are_read_again_unless_they_are_no_such_measures_or_doubled(tmp_path, refusal):
    path, other = tmp_path / "measures.csv", tmp_path / "measures.2.csv"
    cost = measured("cost", 0, 2, both=70.0, neither=60.0)
    lines = lines_of(measured("peak", 0, 0.25, "a, b", both=70.0), cost, measured("peak", 1, -1, both=71.0))
    text = format_lines(lines)
    path.write_text(text)
    assert read_lines(path) == lines
    other.write_text(format_lines(lines_of(measured("peak", 2, 3, both=72.0))))
    assert set(read_measures([path, other])) == {("peak", 0), ("peak", 1), ("peak", 2), ("cost", 0)}
    assert refusal(read_measures, [path, path]).code == "measures"
    path.write_text(text + text.splitlines()[-1])
    assert refusal(read_lines, path).code == "measures"
    broken = [("detail", "other"), ("0.25", "much"), ("0.25", "nan"), ("both", "none"), ("cost", "nothing")]
    broken += [("71.0", value) for value in ('""none""', '""71.0""', "[71.0]", "NaN", "true", "1" * 400)]
    broken += [('{""both"": 71.0}', '[""both""]')]
    for old, new in [*broken, ("machine,", "machine,,"), ('"{', '"')]:
        assert old in text
        path.write_text(text.replace(old, new))
        assert refusal(read_lines, path).code == "measures"


def test_values_are_of_the_runs_in_the_results(refusal):
    lines = lines_of(measured("peak", 0, 0.25, both=70.0), measured("cost", 0, 2, both=70.0, neither=60.0))
    results = {("both", 0): {"AP": 70.0000000004}, ("neither", 0): {"AP": 61.0}}
    assert values_of("peak", lines, results) == [0.25]
    assert values_of("spread", lines, results) == []
    assert refusal(values_of, "cost", lines, results).code == "measures"
    assert refusal(values_of, "peak", lines, {}).code == "measures"


def test_the_script_keeps_what_it_does_not_measure(script, tmp_path, monkeypatch):
    measure, path = script("measure"), tmp_path / "measures-shapes.csv"
    old = [measured("peak", 0, 1, both=5.0), measured("peak", 1, 2, both=5.0)]
    cost = measured("cost", 0, 3, both=5.0, neither=5.0)
    path.write_text(format_lines(lines_of(*old, cost)))
    new = measured("peak", 1, 4, both=6.0)

    def measure_one_and_fail(*_):
        yield new
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_runs", measure_one_and_fail)
    scale = str(ROOT / "configs" / "scales" / "shapes.yaml")
    with pytest.raises(KeyboardInterrupt):
        measure.main(argparse.Namespace(scale=scale, seeds=range(1, 3), measures=["peak"], out=str(tmp_path)))
    values = {key: (line["value"], line["AP"]) for key, line in read_lines(path).items()}
    assert values == {
        ("peak", 0): ("1", '{"both": 5.0}'),
        ("peak", 1): ("4", '{"both": 6.0}'),
        ("cost", 0): ("3", '{"both": 5.0, "neither": 5.0}'),
    }
