"""The judges of docs/editing.py, where the answer is known, and the pictures that its guide starts from."""

import csv
import runpy

import pytest
import torch

from tests.toy import ROOT, complaint, tool

SCRIPT = f"{ROOT}/docs/editing"


@pytest.mark.parametrize("lean", [-0.5, 0.0, 1.0])
def test_the_slant_of_a_line_is_its_columns_per_row(lean):
    slant = runpy.run_path(f"{SCRIPT}.py")["slant"]
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    line = torch.exp(-(columns - 7.5 - lean * (7.5 - rows) / 2).square())
    assert float(slant(line[None])) == pytest.approx(lean / 2, abs=0.02)


def test_pictures_of_each_digit_and_the_slants_of_all_are_written(toy_run, tmp_path):
    done = tool(SCRIPT, "pictures", toy_run / "run", "--examples", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "train").glob("[0-9]/*.png"))) == 20
    table = list(csv.DictReader((tmp_path / "slants.csv").open()))
    assert {path.stem.lstrip("0") or "0" for path in (tmp_path / "train").glob("*/*.png")} < {
        row["name"] for row in table
    }


def test_other_runs_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    assert "is no run of digits" in complaint(tool(SCRIPT, "edits", tmp_path / "run"))
