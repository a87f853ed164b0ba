"""The command rcg: it finds the tools, and names the nearest where there is none."""

import runpy
import sys
from pathlib import Path

import pytest

from rcg import __main__ as command
from rcg import __version__
from rcg.core.errors import UserError
from rcg.core.registry import Registry
from tests.toy import ROOT


def said(monkeypatch, capsys, *arguments):
    """Run the command in this process; return its exit code, what it printed, and its complaint."""
    monkeypatch.setattr(sys, "argv", ["rcg", *arguments])
    try:
        command.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_every_tool_is_a_command_that_the_help_explains(monkeypatch, capsys):
    assert set(command.tools().values()) == set((ROOT / "tools").glob("*.py"))
    for arguments in ((), ("--help",)):
        code, text, _ = said(monkeypatch, capsys, *arguments)
        assert code == 0
        assert all(f"  {name} " in text for name in command.tools())
        assert "Generate images with a trained run" in text


@pytest.mark.parametrize("name", ["sample-rdm", "sample_rdm"])
def test_a_tool_gets_the_rest_of_the_command_line(name, monkeypatch, capsys):
    code, text, _ = said(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert text.startswith("usage: sample_rdm.py ")
    code, _, complaint = said(monkeypatch, capsys, name, "runs/none", "--nmu", "3")
    assert code == 2
    assert "--nmu" in complaint


def test_the_module_runs_as_the_command_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rcg", "--version"])
    runpy.run_path(str(Path(command.__file__)), run_name="__main__")
    assert capsys.readouterr().out == f"rcg {__version__}\n"


def test_the_ready_configurations_are_where_it_says(monkeypatch, capsys):
    _, text, _ = said(monkeypatch, capsys, "configs")
    assert (Path(text.strip()) / "digits.yaml").is_file()


def test_an_unknown_tool_is_answered_with_the_nearest(monkeypatch, capsys):
    code, _, complaint = said(monkeypatch, capsys, "smaple")
    assert code == 2
    assert complaint.startswith("error: rcg has no tool 'smaple'; did you mean 'sample'?")
    assert complaint.count("\n") == 1


def test_a_checkout_that_is_not_installed_is_told_how_to_be():
    with pytest.raises(UserError, match=r"no package rcg\.missing: install rcg \(pip install --editable "):
        Registry("encoder", "rcg.missing").get("moco_v3")
