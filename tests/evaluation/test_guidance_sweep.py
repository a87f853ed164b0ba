"""A sweep of guidance says what is doubtful, and recommends a scale only where its scores can."""

import json
from pathlib import Path

import pytest

from rcg.evaluation.guidance_sweep import GuidanceSweep
from rcg.evaluation.report import Report
from rcg.evaluation.scores import Score

TOO_FEW = "FD: 8 samples are too few for 512 features"


def report(value, std, is_biased):
    scores = [Score("own", "FD", value, "low", std, "3 resamples of the samples", is_biased)]
    scores.append(Score("own", "FD of 8 validation images", 0.5, "reference"))
    return Report("run", 8, {}, {}, [], 3, {}, scores, [TOO_FEW] if is_biased else [])


def sweep(is_biased=False, std=0.1):
    values = {1.0: 3.0, 2.0: 2.0, 3.0: 2.05, 4.0: 4.0}
    reports = {scale: report(value, std, is_biased) for scale, value in values.items()}
    return GuidanceSweep("run: dit", reports, [("own", "FD")])


def test_scales_that_differ_by_less_than_the_std_are_named_too():
    assert list(sweep().best()) == [
        "FD (own) is lowest at a guidance of 2: 2 ± 0.1",
        "FD (own) is no higher, within one std, at 3",
    ]
    assert len(list(sweep(std=None).best())) == 1


def test_too_few_samples_recommend_no_scale_and_the_warning_stays(tmp_path):
    found = sweep(is_biased=True)
    assert list(found.best()) == ["FD (own) cannot choose a guidance: it is of too few images"]
    found.write(tmp_path)
    assert json.loads((tmp_path / "guidance.json").read_text())["warnings"] == [TOO_FEW]
    text = Path(tmp_path / "guidance.md").read_text()
    assert text.count(f"**Warning:** {TOO_FEW}.") == 1
    assert "lowest" not in text
    assert "| FD | own | 3 ± 0.1 | 2 ± 0.1 | 2.05 ± 0.1 | 4 ± 0.1 | low |" in text


@pytest.mark.parametrize("missing", [1.0, 2.0])
def test_a_scale_without_a_score_leaves_a_gap(missing, tmp_path):
    found = sweep()
    found.reports[missing].scores.clear()
    found.write(tmp_path)
    assert (tmp_path / "guidance.png").is_file()
