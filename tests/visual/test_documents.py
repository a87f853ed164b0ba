"""Documents: pages need no other file and escape text; tables of Markdown; JSON that every reader accepts."""

import json

import pytest
import torch
from jinja2 import UndefinedError

from rcg.core.errors import UserError
from rcg.evaluation.report import Report
from rcg.evaluation.scores import Score
from rcg.visual.documents import Document, read_json, render, typed, words, write_json
from rcg.visual.grids import save_image

DOCUMENT = Document(
    title="A <run>",
    head=["a", "b"],
    rows=[["1 < 2", "cat|dog\n<img src=x>"]],
    lines=["first & best"],
    warnings=["low & few"],
    pictures={"compare.png": "samples", "curves.png": "training", "missing.png": "nothing"},
    drawn=["curves.png"],
    settings={"sampler": {"name": "<ddim>", "eta": None}, "seed": 3},
)


def page(folder):
    for name in ("compare.png", "curves.png"):
        save_image(torch.rand(3, 4, 4), folder / name)
    values = {"title": DOCUMENT.title, "report": DOCUMENT, "folder": folder, "experiment": "run: <here>"}
    render("comparison.html", folder / "page.html", **values)
    return (folder / "page.html").read_text()


def test_a_page_embeds_its_pictures_and_escapes_text(tmp_path):
    text = page(tmp_path)
    assert "<h1>A &lt;run&gt;</h1>" in text
    assert '<img class="curves" alt="curves.png" src="data:image/png;base64,' in text
    assert text.count("<img") == 2, "a picture that is not there is left out"
    assert "<tr><td>1 &lt; 2</td><td>cat|dog\n&lt;img src=x&gt;</td></tr>" in text
    assert "<p class=warning>Warning: low &amp; few.</p>" in text
    assert "<tr><td>sampler: name</td><td>&lt;ddim&gt;</td></tr>" in text
    assert "<pre>run: &lt;here&gt;</pre>" in text


def test_a_bar_or_a_line_in_a_name_does_not_end_a_cell_of_markdown(tmp_path):
    lines = DOCUMENT.write(tmp_path, "page").read_text().splitlines()
    assert lines[:6] == ["# A <run>", "", "first & best", "", "| a | b |", "|---|---|"]
    assert lines[6] == r"| 1 < 2 | cat\|dog <img src=x> |"
    assert "**Warning:** low & few." in lines
    assert lines[-2:] == ["| sampler: name | <ddim> |", "| seed | 3 |"]
    assert typed(Document, read_json(tmp_path / "page.json"), tmp_path).rows == [list(DOCUMENT.rows[0])]


def test_a_report_states_scores_with_their_stds_and_what_these_are_over(tmp_path):
    scores = [
        Score("own", "FD", 1.234567, "low", 0.123, "2 resamples of the samples"),
        Score("own", "novelty", 0.5, "about 1"),
    ]
    values = ({"number": 3}, {"name": "train"}, [{"name": "own"}], 2, {"seconds": 1}, scores, [], ["own"])
    report = Report("run", 3, *values)
    report.write(tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| metric | value ± std | std over | features | ideal |" in lines
    assert "| FD | 1.235 ± 0.12 | 2 resamples of the samples | own | low |" in lines
    assert "| novelty | 0.5 |  | own | about 1 |" in lines
    assert any(line.endswith("](neighbors-own.png)") for line in lines)
    assert "| samples: number | 3 |" in lines
    assert Report.read(tmp_path / "report.json") == report


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"title": "a"}', '{"title": 1, "head": 2, "rows": 3}', "[" * 9999])
def test_damaged_results_are_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    for read in (Report.read, lambda path: typed(Document, read_json(path), path)):
        with pytest.raises(UserError, match=r"report.json is damaged, or was written by another version"):
            read(tmp_path / "report.json")


def test_what_is_no_number_is_null_in_json(tmp_path):
    write_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}}, tmp_path / "a.json")

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, 1.5], "b": {"c": None}}


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path):
    DOCUMENT._replace(title="caf\udce9").write(tmp_path, "page")
    assert (tmp_path / "page.md").read_text().startswith("# caf\\udce9\n")


def test_a_value_that_a_template_needs_is_not_left_out(tmp_path):
    with pytest.raises(UndefinedError):
        render("document.md", tmp_path / "page.md", document={})
    assert not list(tmp_path.iterdir())


def test_facts_are_written_on_one_line():
    assert words({"a": {"b": 1, "c": None}, "d": [1, 2], "e": "two words"}) == "a b 1, d 1-2, e (two words)"
    assert words([{"a": 1}, {"a": 2}]) == "a 1; a 2"
