"""The README's numbers are those of committed results."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchmarks import check_readme
from benchmarks.machine import RESULTS
from jaxgen.errors import UserError

ROWS = [{"batch": 1, "who": "us", "x": 1.2316}, {"batch": 8, "who": "us", "x": 1.1593}]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps({"rows": ROWS, "share (of 9)": 0.4969}))
    (tmp_path / "b.jsonl").write_text('{"step": 20, "loss": 3.0}\n{"step": 40, "loss": 2.5}\n')
    (tmp_path / "c.log").write_text("all done in 2 min\nall done in 8 min 50 s\n")
    return tmp_path


DOCS = ("docs/add.md", "docs/measures.md", "docs/methods.md", "tpu/README.md")


@pytest.mark.parametrize("path", ["README.md", *DOCS])
def test_every_number_of_ours_is_that_of_a_committed_result(path: str) -> None:
    text = (check_readme.ROOT / path).read_text(encoding="utf-8")
    right, wrong = check_readme.checked(text, RESULTS)
    assert wrong == []
    assert right == text
    assert text.count("<!--= ") == len(check_readme.NUMBER.findall(text)) > 2
    if path == "README.md":
        assert list(check_readme.unsourced(text)) == []
        assert text.count("![") <= 3


def test_every_command_is_one() -> None:
    root = check_readme.ROOT
    for path in (root / "README.md", *root.glob("docs/*.md"), *root.glob("tpu/*.md")):
        for name in re.findall(r"python -m\s+([\w.]+)", path.read_text(encoding="utf-8")):
            assert importlib.util.find_spec(name.rstrip(".")), f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("way", "says", "right"),
    [
        ("a.json rows/batch=8&who=us/x", "1.2", "1.2"),
        ("a.json rows/0/x", "1.23", "1.23"),
        ("a.json rows/0/x", "1.20", "1.23"),
        ("a.json share *100", "49", "50"),
        ("a.json share *100", "49.7", "49.7"),
        ("b.jsonl step=40/loss", "3.0", "2.5"),
        ("c.log all done in (.+)", "8 min 50 s", "8 min 50 s"),
        ("c.log all done in (.+)", "2 min", "8 min 50 s"),
    ],
)
def test_a_number_is_compared_with_as_many_decimals_as_it_has(
    results: Path, way: str, says: str, right: str
) -> None:
    found, wrong = check_readme.checked(f"a\nit is <!--= {way}-->{says}<!--/--> x", results)
    assert found == f"a\nit is <!--= {way}-->{right}<!--/--> x"
    expected = [f"2: says {says}, but {right} stands in {way.removesuffix(' *100')}"]
    assert wrong == ([] if says == right else expected)


@pytest.mark.parametrize(
    "way",
    ["a.json rows/x=1/x", "a.json rows/who=us/x", "a.json rows/2/x", "a.json rows",
     "a.json nothing", "c.log nowhere (.+)", "d.json rows"],
)  # fmt: skip
def test_a_way_that_leads_nowhere_is_an_error(results: Path, way: str) -> None:
    with pytest.raises(UserError):
        check_readme.checked(f"<!--= {way}-->1<!--/-->", results)


def test_a_measured_number_with_nothing_behind_it_is_named() -> None:
    text = (
        "On Python 3.11 ([numbers](a-1.5.json)) it takes `--x 0.5`\nand 12 minutes, 3.5 GB, at "
        "16 x 16 px; <!--= a.json b-->4.25<!--/--> s of 95 % intervals, 8 cats, arXiv 2311.17042"
    )
    assert [line[:10] for line in check_readme.unsourced(text)] == ["2: 12  has", "2: 3.5 has"]
