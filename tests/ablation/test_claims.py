"""The ledger of claims: verdicts from the results that are there, and nothing claimed where there are none."""

import csv
import shutil

import pytest
import yaml
from printed_commands import ROOT

from gfl.ablation.claims import format_ledger, write_joined_reports
from gfl.ablation.measures import Measured, Value
from gfl.ablation.measures_file import format_lines, measure_line
from gfl.ablation.outcomes import format_csv, summarize
from gfl.ablation.records import Session
from gfl.ablation.runs_file import format_runs, read_runs
from gfl.ablation.study import load_study

ROWS = [
    {"name": "base", "paper": {"AP": 39.0}},
    {"name": "new", "expect": "better", "paper": {"AP": 40.0}, "overrides": {"loss.qfl_beta": 1.0}},
    {"name": "less", "expect": "worse", "paper": {"AP": 38.0}},
    {"name": "free"},
]


@pytest.fixture
def ledger(tmp_path):
    """Writes a ledger of claims, each a list of rows or other keys, and results by world and (row, seed).

    Returns its lines.
    """
    scales = tmp_path / "scales"
    scales.mkdir()
    for name in ("one", "two"):
        (scales / f"{name}.yaml").touch()

    def write(claims, results, edit=lambda text: text):
        studies = tmp_path / "configs" / "studies"
        studies.mkdir(parents=True, exist_ok=True)
        for name in ("table3", "table1a_atss"):
            shutil.copy(ROOT / "configs" / "studies" / f"{name}.yaml", studies)
        (studies / "table.yaml").write_text(
            yaml.safe_dump({"title": "T", "base": "b.yaml", "baseline": "base", "rows": ROWS})
        )
        study = load_study(studies / "table.yaml")
        for world, values in results.items():
            folder = tmp_path / "results" / f"table-{world}"
            folder.mkdir(parents=True, exist_ok=True)
            metrics = {key: {"AP": value} for key, value in values.items()}
            (folder / "runs.csv").write_text(edit(format_runs(study, metrics, dict.fromkeys(metrics, ()))))
        path = tmp_path / "claims.yaml"
        worlds = [{"name": f"of {world}", "scale": f"scales/{world}.yaml"} for world in ("one", "two")]
        entries = [
            {"claim": f"claim {number}", "source": "table 9"}
            | ({"study": "table", "rows": tested} if isinstance(tested, list) else tested)
            for number, tested in enumerate(claims)
        ]
        path.write_text(yaml.safe_dump({"results": "results", "worlds": worlds, "claims": entries}))
        text = format_ledger(path, tmp_path)
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| claim " in line]

    return write


def runs(**differences):
    """Of three seeds: base at 20, other rows as far from it as given, but for a little noise."""
    values = {("base", seed): 20.0 for seed in range(3)}
    return values | {
        (name, seed): 20.0 + difference + noise
        for name, difference in differences.items()
        for seed, noise in enumerate((-0.1, 0.0, 0.1))
    }


def test_a_claim_has_the_verdict_of_its_rows_in_each_world(ledger):
    claims = [["new"], ["less"], ["new", "less"]]
    lines = ledger(claims, {"one": runs(new=1.0, less=1.0), "two": runs(new=1.0, less=-1.0)})[1:]
    assert [line[3] for line in lines] == ["+1.0", "-1.0", "+1.0; -1.0"]
    assert [line[4].split(":")[0] for line in lines] == ["supported", "contradicted", "contradicted"]
    assert [line[5].split(":")[0] for line in lines] == ["supported", "supported", "supported"]
    assert lines[2][4] == "contradicted: +1.0 ± 0.2, p 0.007; +1.0 ± 0.2, p 0.007 (3 seeds)"


def test_what_was_not_run_says_so(ledger):
    one_seed = {key: value for key, value in runs(new=5.0).items() if key[1] == 0}
    line = ledger([["new", "less"]], {"one": one_seed})[1]
    assert line[4] == "open: +4.9; not run (1 seed)"
    assert line[5] == "not run"


def test_results_of_several_machines_are_joined_unless_a_run_is_in_two(ledger, refusal, tmp_path):
    found = runs(new=1.0)
    ledger([["new"]], {"one": {key: value for key, value in found.items() if key[1] == 2}})
    folder = tmp_path / "results" / "table-one"
    (folder / "runs.csv").rename(folder / "runs.2.csv")
    first = {key: value for key, value in found.items() if key[1] < 2}
    assert ledger([["new"]], {"one": first})[1][4] == "supported: +1.0 ± 0.2, p 0.007 (3 seeds)"
    refused = refusal(ledger, [["new"]], {"one": found})
    assert (refused.code, "twice" in refused) == ("runs", True)


def test_rows_of_a_seed_from_two_machines_are_refused(ledger, refusal):
    def edit(text):
        """The first run with one thread, all others with none on record."""
        header, first, *others = text.splitlines(keepends=True)
        cells = first.split(",")
        cells[header.split(",").index("threads")] = "1"
        return "".join([header, ",".join(cells), *others])

    assert ledger([["new"]], {"one": runs(new=1.0)})[1][4].startswith("supported")
    assert refusal(ledger, [["new"]], {"one": runs(new=1.0)}, edit).code == "runs"


def test_the_seeds_are_those_that_a_row_shares_with_its_baseline(ledger):
    found = runs(new=1.0)
    del found["base", 2]
    assert ledger([["new"]], {"one": found})[1][4].endswith("(2 seeds)")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(("20.9", ""), ("20.9", "nan"), ("20.9", "209"), ("new,", "elsewhere,"), ("qfl_beta", "box_weight")),
        ("overrides", "other"),
    ],
)
def test_results_without_a_number_or_of_other_rows_are_refused(ledger, refusal, old, new):
    """Also of a row that has changed since."""
    assert refusal(ledger, [["new"]], {"one": runs(new=1.0)}, lambda text: text.replace(old, new, 1)).code == "runs"


def test_an_empty_file_and_a_scale_that_is_not_there_are_refused(ledger, refusal, tmp_path):
    assert refusal(ledger, [["new"]], {"one": runs(new=1.0)}, lambda text: "").code == "runs"
    (tmp_path / "scales" / "two.yaml").unlink()
    assert refusal(ledger, [["new"]], {}).code == "ledger"


def test_a_measure_has_the_verdict_of_its_own_values(ledger, tmp_path):
    folder = tmp_path / "results" / "table3-one"
    folder.mkdir(parents=True)

    def measured(*values):
        """In two files, as of two machines, beside one of another scale."""
        study = load_study(ROOT / "configs" / "studies" / "table3.yaml")
        results = {("both", seed): {"AP": 70.0} for seed in range(len(values))}
        (folder / "runs.csv").write_text(format_runs(study, results, dict.fromkeys(results, ())))
        seeds = [Measured("peak", seed, Value(value, ""), {"both": 70.0}) for seed, value in enumerate(values)]
        for name, part in (("one", seeds[:2]), ("one.2", seeds[2:]), ("one_more", seeds)):
            lines = {(each.name, each.seed): measure_line(each, "a machine") for each in part}
            (folder.parent / f"measures-{name}.csv").write_text(format_lines(lines))
        claims = [{"measure": "peak", "expect": expect} for expect in ("better", "worse")]
        claims.append({"measure": "peak", "expect": "equal", "within": 0.1})
        claims.append({"measure": "cost", "expect": "worse"})
        lines = ledger(claims, {})[1:]
        assert {line[5] for line in lines} == {"not run"}
        return [line[4] for line in lines]

    open_ones = [f"open: +0.20 ± 0.25, p {p} (3 seeds)" for p in ("0.074", "0.074", "0.225")]
    assert measured(0.1, 0.2, 0.3) == [*open_ones, "not run"]
    verdicts = [cell.split(":")[0] for cell in measured(0.19, 0.2, 0.21)]
    assert verdicts == ["supported", "contradicted", "contradicted", "not run"]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"study": "table"},
        {"study": "table", "rows": ["new"], "expect": "worse"},
        {"study": "table", "rows": ["new"], "measure": "peak", "expect": "better"},
        {"study": "table", "rows": ["new"], "measure": "nothing"},
        {"measure": "peak"},
        {"measure": "nothing", "expect": "better"},
        {"measure": "peak", "expect": "equal"},
        {"measure": "peak", "expect": "better", "within": 1.0},
    ],
)
def test_claims_with_nothing_that_tests_them_or_with_too_much_are_refused(ledger, refusal, entry):
    assert refusal(ledger, [entry], {}).code == "ledger"


def test_claims_that_nothing_tests_are_refused(ledger, refusal):
    for rows in (["free"], ["base"], ["nowhere"]):
        assert refusal(ledger, [rows], {}).code == "claim_row"


def test_runs_of_two_machines_are_joined(ledger, tmp_path):
    claims, folder = [["new"]], tmp_path / "results" / "table-one"
    assert ledger(claims, {"one": runs(new=1.0)})[1][4].endswith("(3 seeds)")
    assert write_joined_reports(tmp_path / "claims.yaml", tmp_path) == []
    study = load_study(tmp_path / "configs" / "studies" / "table.yaml")
    for name, seeds, start in (("runs.csv", (0, 2), "aaa"), ("runs.2.csv", (1,), "bbb")):
        metrics = {key: {"AP": value} for key, value in runs(new=1.0).items() if key[1] in seeds}
        sessions = {key: [Session(60.0, 1, "2.0", f"machine {start}", start)] for key in metrics}
        (folder / name).write_text(format_runs(study, metrics, sessions))
    path = tmp_path / "claims.yaml"
    assert "supported: +1.0 ± 0.2, p 0.007 (3 seeds, 2 starts)" in format_ledger(path, tmp_path)
    assert write_joined_reports(path, tmp_path) == [folder]
    report = (folder / "report.md").read_text().splitlines()
    (new,) = [line for line in report if line.startswith("| new")]
    assert [cell.strip() for cell in new.split("|")[2:7]] == ["3", "21.0 ± 0.1", "", "", "+1.0 ± 0.2"]
    assert [line for line in report if line.startswith("- ")] == [
        f"- `python scripts/study.py configs/studies/table.yaml --scale configs/scales/one.yaml --seeds {seeds} --rows "
        f"base new`, machine {start}, threads per process: 1, torch 2.0, start weights {start}"
        for seeds, start in (("1", "aaa"), ("1-1", "bbb"), ("2-2", "aaa"))
    ]
    assert (folder / "report.png").is_file()


def test_the_committed_reports_are_of_all_committed_runs():
    folders = [path.parent for path in (ROOT / "docs" / "results" / "studies").glob("*/runs.csv")]
    assert folders

    def result(line):
        return line["row"], line["seeds"], line["AP"]

    for folder in folders:
        study = load_study(ROOT / "configs" / "studies" / f"{folder.name.rpartition('-')[0]}.yaml")
        runs = read_runs(folder.glob("runs*.csv"), study)
        found = format_csv(summarize(study, runs.metrics)).splitlines()
        with open(folder / "report.csv", newline="", encoding="utf-8") as file:
            assert [*map(result, csv.DictReader(file))] == [*map(result, csv.DictReader(found))], folder.name


def test_the_committed_ledger_is_that_of_the_committed_results():
    assert (ROOT / "docs" / "claims.md").read_text() == format_ledger(ROOT / "configs" / "claims" / "paper.yaml", ROOT)
