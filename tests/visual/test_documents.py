"""Documents: pages need no other file and escape text; tables of Markdown; facts on one line."""

import pytest
import torch
from jinja2 import UndefinedError

from rcg.evaluation.report import Report
from rcg.evaluation.scores import Score
from rcg.metrics.bootstrap import MeanStd
from rcg.visual.documents import render, words
from rcg.visual.grids import save_image

PAGE = {
    "headlines": [],
    "head": ["a", "b"],
    "rows": [["1 < 2", "yes"]],
    "methods": {"c": "d"},
    "warnings": ["low & few"],
}


def test_a_page_embeds_its_pictures_and_escapes_text(tmp_path):
    for name in ("compare.png", "curves.png"):
        save_image(torch.rand(3, 4, 4), tmp_path / name)
    values = {"title": "A <run>", "page": PAGE, "folder": tmp_path, "experiment": "run: <here>"}
    render("comparison.html", tmp_path / "page.html", **values)
    text = (tmp_path / "page.html").read_text()
    assert "<h1>A &lt;run&gt;</h1>" in text
    assert '<img class="curves" alt="curves.png" src="data:image/png;base64,' in text
    assert "<tr><td>1 &lt; 2</td><td>yes</td></tr>" in text
    assert text.count("<th>") == 2
    assert "<p class=warning>Warning: low &amp; few.</p>" in text
    assert "<pre>run: &lt;here&gt;</pre>" in text


def test_markdown_is_not_escaped(tmp_path):
    render("comparison.md", tmp_path / "page.md", page=PAGE | {"title": "A <run>"})
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# A <run>\n\n| a | b |\n|---|---|\n| 1 < 2 | yes |\n\n![")
    assert text.endswith("\n- c: d\n\n**Warning:** low & few.\n")


def test_a_report_states_scores_with_their_stds(tmp_path):
    scores = [Score("own", "FD", 1.234567, MeanStd(1.5, 0.123), "low"), Score("own", "novelty", 0.5, None, "about 1")]
    report = Report("run", 3, {"number": 3}, {"name": "train"}, [{"name": "own"}], 2, {"seconds": 1}, scores, [])
    report.write(tmp_path, ["neighbors-own.png"])
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| FD | 1.2346 | 1.5 ± 0.12 | own | low |" in lines
    assert "| novelty | 0.5 |  | own | about 1 |" in lines
    assert lines[-1] == "![samples beside their nearest training images](neighbors-own.png)"


def test_a_value_that_a_template_needs_is_not_left_out(tmp_path):
    with pytest.raises(UndefinedError):
        render("comparison.md", tmp_path / "page.md", page={})
    assert not list(tmp_path.iterdir())


def test_facts_are_written_on_one_line():
    assert words({"a": {"b": 1, "c": None}, "d": [1, 2], "e": "two words"}) == "a b 1, d 1-2, e (two words)"
    assert words([{"a": 1}, {"a": 2}]) == "a 1; a 2"
