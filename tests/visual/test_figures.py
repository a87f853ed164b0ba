"""Drawings: names appear as they are, in fonts that have them, and a drawing is never taken for a sample."""

import pytest
import torch
from PIL import Image

from rcg.visual.curves import draw_curves, draw_together
from rcg.visual.figures import drawn
from rcg.visual.grids import is_drawing, save_gallery, save_image, save_rows
from rcg.visual.text import drawable, fonts, runs


def test_a_dollar_starts_no_formula(tmp_path):
    with drawn(tmp_path / "a.png", 3, 2) as figure:
        axes = figure.subplots()
        axes.semilogy([1, 2], [1, 1000], label="$x^{")
        axes.set_title(r"$\undefined$ costs 5$ or $6")
        axes.legend()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$x^{"]
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("собака", "собака"),
        ("naïve", "naïve"),
        ("line\nbreak\ttab", "line break tab"),
        ("\x07bell", "?bell"),
        ("a\u200db\ufe0f", "ab"),
        ("caf\udce9", "caf\\udce9"),
        ("", ""),
    ],
)
def test_text_is_one_line_that_can_be_drawn(text, shown):
    assert drawable(text) == shown
    assert "".join(run for _, run in runs(drawable(text))) == shown


def test_characters_without_a_font_are_written_as_their_codes(monkeypatch):
    from rcg.visual import text

    dejavu = next(font for font in fonts() if font.family == "DejaVu Sans")
    monkeypatch.setattr(text, "fonts", lambda: (dejavu,))
    text._font.cache_clear()
    assert drawable("猫 cat 𓃠") == "\\u732b cat \\U000130e0"
    other = dejavu._replace(family="other", characters=frozenset({ord("猫")}))
    monkeypatch.setattr(text, "fonts", lambda: (dejavu, other))
    text._font.cache_clear()
    assert list(runs(drawable("a猫b"))) == [(dejavu, "a"), (other, "猫"), (dejavu, "b")]
    text._font.cache_clear()


def test_drawings_are_marked_and_samples_are_not(tmp_path):
    colors = torch.rand(3, 3, 8, 8)
    save_gallery(colors, list("abc"), "title", tmp_path / "gallery.png")
    save_rows({"row": colors}, "title", tmp_path / "rows.png")
    draw_curves({"rdm": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}, tmp_path / "curves.png")
    save_image(colors[0], tmp_path / "sample.png")
    found = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            found[path.name] = is_drawing(picture)
    assert found == {"gallery.png": True, "rows.png": True, "curves.png": True, "sample.png": False}


@pytest.mark.parametrize("draw", [draw_curves, draw_together])
def test_a_quantity_with_one_value_gets_no_panel(tmp_path, draw, monkeypatch):
    from matplotlib.figure import Figure

    titles = []
    savefig = Figure.savefig

    def remember(self, *arguments, **options):
        titles.extend(axes.get_title() for axes in self.axes if axes.get_title())
        return savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "rep_fd": 3.0}]
    draw({"rdm": lines}, tmp_path / "curves.png")
    assert [title.removeprefix("rdm: ") for title in titles] == ["loss"]
    draw({"rdm": lines[:1]}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists(), "no curve, no picture, and none of before"
