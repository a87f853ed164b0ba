"""The page and the table of a run: whatever was left there, torn or strange, and names that are no HTML."""

import json

import pytest
import torch

from rcg.config import load_experiment
from rcg.core.errors import UserError
from rcg.encoding.run_folder import RunFolder
from rcg.evaluation.report import Report
from rcg.evaluation.run_page import summarize, write_page
from rcg.evaluation.scores import Score
from rcg.visual.documents import Document, write_json
from rcg.visual.grids import save_gallery

LINES = [{"step": 1, "seconds": 0.5, "loss": 2.0}, {"step": 2, "seconds": 1.0, "loss": 1.0, "rep_fd": 3.0,
         "rep_fd_reference": 1.0}]  # fmt: skip
EVIL = "<script>alert(1)</script>|a\nb"


def document(title, picture):
    return Document(title, ["name"], [[EVIL]], lines=[EVIL], warnings=[EVIL], pictures={picture: EVIL})


@pytest.fixture
def run(tmp_path):
    """A run that has a bit of everything."""
    run = RunFolder(tmp_path / "run")
    run.rdm.path.mkdir(parents=True)
    run.rdm.log.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    run.rdm.config.write_text(f"data: {EVIL!r}\n")
    shade = torch.rand(1, 3, 8, 8)
    save_gallery(shade, [EVIL], EVIL, run.gallery / "gallery.png")
    write_json({"num": 1, "images_per_second": 2.0, "seed": EVIL}, run.gallery / "samples.json")
    scores = [Score(EVIL, "FD", 1.5, "low", 0.1, "2 resamples of the samples")]
    samples = {"labels": EVIL, "generator": "dit", "guidance": {"scale": 1.5}}
    report = Report(EVIL, 3, samples, {}, [], 2, {}, scores, [EVIL], ["pixels"])
    report.write(run.evaluation / "dit-3-abc")
    save_gallery(shade, [""], "", run.evaluation / "dit-3-abc" / "neighbors-pixels.png")
    document("Guidance of dit", "guidance.png").write(run.evaluation / "guidance-dit", "guidance")
    document("Encoder moco", "report.png").write(run.encoder_report, "report")
    save_gallery(shade, [""], "", run.encoder_report / "report.png")
    comparison = document("Conditions compared", "compare.png")
    comparison.write(run.comparison("dit"), "compare", {"report": comparison._asdict()})
    document("Samplers of rdm", "none.png").write(run.rdm.path, "samplers")
    document("Classes", "none.png").write(run.representations, "classes")
    return run


def test_the_page_holds_every_report_and_no_html_of_names(run):
    write_page(run, run.page)
    page = run.page.read_text()
    assert "<script>" not in page
    for title in ("Guidance of dit", "Encoder moco", "Conditions compared", "Samplers of rdm", "Classes", "Training"):
        assert page.count(f"<h2>{title}</h2>") == 1, title
    assert ": dit, 3 samples, guidance 1.5</h2>" in page
    assert page.count("data:image/png;base64,") == 4  # gallery, neighbors, encoder, curves
    assert "<td>1.5 ± 0.1</td><td>2 resamples of the samples</td>" in page


def test_torn_lines_of_a_log_are_left_out(run, capsys):
    with run.rdm.log.open("a") as log:
        log.write('null\n[1]\n{"step": "x"}\n{"loss": 3}\n' + "[" * 20_000 + '\n{"step": 3, "seco')
    assert run.logs() == {"rdm": LINES}
    write_page(run, run.page)
    summarize(run)
    assert "2 steps in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"scores": 1}'])
def test_torn_results_are_named_and_left_out(run, capsys, torn):
    names = ("report.json", "guidance.json", "compare.json", "samplers.json", "classes.json", "samples.json")
    files = [path for path in run.path.rglob("*.json") if path.name in names]
    assert len(files) == 7
    for path in files:
        path.write_text(torn)
    write_page(run, run.page)
    summarize(run)
    said = capsys.readouterr().err
    for path in files:
        # Whatever is a JSON object may be the facts of a gallery.
        assert (str(path) in said) or (path.name == "samples.json" and torn.startswith('{"'))
    assert "<h2>Training</h2>" in run.page.read_text()


def test_logs_without_a_line_are_no_run(run):
    run.rdm.log.write_text("{\n")
    with pytest.raises(UserError, match="holds no trained stage"):
        summarize(run)


def test_the_page_draws_distances_against_minutes_with_the_curve_that_is_expected(run):
    write_page(run, run.page)
    assert not run.distances.exists()
    stage = run.stage_folder("dit")
    stage.path.mkdir()
    lines = [{"step": step, "seconds": step / 2, "fd": 100 / step} for step in (100, 200, 400)]
    stage.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.path / "digits.yaml").write_text(
        "data: digits\nencoder: moco_v3\ngenerator: {name: dit, train: {steps: 800}}\n"
    )
    stage.config.write_text(load_experiment(str(run.path / "digits.yaml")).to_yaml())
    drawn = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rcg.evaluation.run_page.draw_expected", lambda metrics, *rest: drawn.update(metrics))
        write_page(run, run.page)
    (metric,) = drawn.values()
    assert metric.points[-1] == pytest.approx((200 / 60, 0.25))
    assert metric.curve[-1] == pytest.approx((400 / 60, 0.125))
    write_page(run, run.page)
    assert run.distances.is_file()
    assert run.page.read_text().count("data:image/png;base64,") == 5
