"""Json files as they are found, against the standard library."""

import json

import numpy as np
import pytest

from gfl.common.errors import UserError
from gfl.data.json_file import read_json

ODD_JSONS = {
    "NaN": b"[NaN, Infinity]",
    "beyond floats": b"[1e400, -1e400]",
    "beyond 64 bits": b"[18446744073709551616, -9223372036854775809999, 1.00000000000000000000001]",
    "zeros": b"[-0, -0.0, 0.1e-320]",
    "key twice": b'{"a": 1, "a": 2}',
    "half a surrogate": b'["\\ud800"]',
    "byte order mark": b"\xef\xbb\xbf[1]",
    "UTF-16": "[1]".encode("utf-16"),
    "deep": b"[" * 2000 + b"]" * 2000,
}


@pytest.mark.parametrize("content", ODD_JSONS.values(), ids=ODD_JSONS)
def test_a_json_is_read_as_the_standard_library_reads_it(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)

    def outcome(read):
        try:
            return repr(read())
        except (RecursionError, UserError):
            return None

    assert outcome(lambda: read_json(tmp_path / "a.json")) == outcome(lambda: json.loads(content))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<annotations></annotations>", "XML"),
        (b"filename,width\na.jpg,5\n", "text"),
        (b'{"ID": "a"}\n{"ID": "b"}\n', "one a line"),
        (b'{"images": [{"id": 1}, {"id"', "end is missing"),
        ('{"name": "caf\u00e9"}'.encode("latin-1"), "UTF-8"),
    ],
)
def test_the_content_of_a_file_that_is_no_json_is_named(tmp_path, refusal, content, named):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    error = refusal(read_json, str(path))
    assert error.code == "json"
    assert named in error


OUTLINES = [
    [],
    [[1, 2.5, -3e-7, 4]],
    [[[1]], []],
    {"counts": [1, 2], "size": [3, 4]},
    {"counts": "a]b", "size": [3, 4]},
    "text",
    None,
    [["x"]],
    [None],
]


@pytest.mark.parametrize("indent", [None, 2])
def test_everything_but_outlines_is_read_without_them(tmp_path, indent):
    rng, entries = np.random.default_rng(0), []
    for number in range(200):
        fields = {
            "segmentation": OUTLINES[number % len(OUTLINES)],
            "bbox": [1, 2, 3, 4],
            'a "segmentation": [1, 2]': 'a "segmentation": [1, 2]',
            "segmentations": [1],
            "more": {"segmentation": [[5]]},
        }
        order = rng.permutation(list(fields))
        entries.append({str(key): fields[str(key)] for key in order})
    (tmp_path / "a.json").write_text(json.dumps(entries, indent=indent))

    def emptied(value):
        if isinstance(value, list):
            return [emptied(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        return {
            key: [] if key == "segmentation" and numbers_only(entry) else emptied(entry) for key, entry in value.items()
        }

    def numbers_only(value):
        return isinstance(value, (int, float)) or (isinstance(value, list) and all(map(numbers_only, value)))

    assert read_json(tmp_path / "a.json") == entries
    assert read_json(tmp_path / "a.json", outlines=False) == emptied(entries)


def test_a_fault_is_placed_where_it_is_in_the_file(tmp_path, refusal):
    (tmp_path / "a.json").write_text('[{"segmentation": [[1, 2, 3, 4]], "bbox": ]')
    assert "char 42" in refusal(read_json, tmp_path / "a.json", outlines=False)
