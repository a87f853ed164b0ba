"""What programs say: lines where there is no terminal, each warning once and as a sentence, a log file."""

import ast
import io
import math
import re
import sys
import warnings

import pytest

from rcg.core import console
from tests.toy import ROOT, tool, write

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def fresh():
    with console.session():
        yield


def test_without_a_terminal_progress_is_lines_with_the_time(capsys):
    with console.progress(desc="rdm", unit="step", total=20, interval=math.inf) as bar:
        for i in range(20):
            bar.update()
            if i % 8 == 7:
                bar.set_postfix_str("loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(re.match(STAMP + r"rdm: step \d+ of 20, ", line) for line in lines)
    assert [line.endswith("loss 0.5") for line in lines] == [True, True, False]


def test_a_long_loop_prints_now_and_then_and_a_short_one_at_its_end(capsys):
    assert list(console.progress(range(1000), desc="encoding", unit="image", total=1000)) == list(range(1000))
    assert len(capsys.readouterr().err.splitlines()) == 1
    list(console.progress(range(10), desc="encoding", unit="image", total=10, interval=0))
    assert len(capsys.readouterr().err.splitlines()) == 10
    list(console.progress(range(10), desc="encoding", unit="image", total=10, leave=False))
    list(console.progress(range(10), desc="encoding", unit="image", total=10, shown=False, interval=0))
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(console.progress(range(5), desc="encoding", unit="image", total=5)) == list(range(5))
    assert "100%" in sys.stderr.getvalue()


def test_only_the_console_draws_bars():
    files = (path for folder in ("rcg", "encoders", "generators") for path in (ROOT / folder).rglob("*.py"))
    for path in files:
        if path.name != "console.py":
            names = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert "tqdm" not in [node.module for node in names], path


def test_a_warning_is_a_sentence_and_comes_once(capsys):
    for _ in range(3):
        warnings.warn("this is\n  old", UserWarning, stacklevel=1)
        console.warn("mind the gap")
    assert capsys.readouterr().err == "warning: this is old\nwarning: mind the gap\n"


def test_the_log_has_what_was_said_before_and_after_it_was_there(tmp_path, capsys):
    console.say("first")
    console.warn("second")
    console.log_to(tmp_path / "log.txt")
    console.say("third\nfourth \udcff")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [re.sub(STAMP, "", line) for line in lines] == ["first", "warning: second", "third", "fourth ?"]
    assert all(re.match(STAMP, line) for line in lines)


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    console.log_to(tmp_path)
    console.say("on")
    out = capsys.readouterr()
    assert out.err.count("cannot be written") == 1
    assert out.out == "on\n"


def test_a_training_without_a_terminal_prints_one_line_per_interval(tmp_path):
    done = tool("train_encoder", write(tmp_path, encoder__train__log_every=2))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "encoder: step" in line]
    assert len(lines) == 3
    assert all(re.match(STAMP + r"encoder: step [246] of 6, .*, [a-z_]+ [0-9.]+", line) for line in lines)
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    for line in (lines[-1], "model.safetensors: step 6"):
        assert line in log


def test_a_refused_training_leaves_no_log(tmp_path):
    assert tool("train_rdm", write(tmp_path), "rdm.sampler.name=ddpm").returncode == 2
    assert not (tmp_path / "run").exists()


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    console.say("FD 3.2 ± 0.1 of 猫")
    assert terminal.buffer.getvalue() == b"FD 3.2 \\xb1 0.1 of \\u732b\n"
