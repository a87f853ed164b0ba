"""The command rcg: each tool by its name, `rcg sample RUN` for `python tools/sample.py RUN`.

rcg TOOL ...          run a tool; rcg TOOL --help explains it
rcg configs           print the folder of the ready configurations
rcg --version         print the version

With several processes: accelerate launch -m rcg train-rdm CONFIG
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from rcg import __version__
from rcg.core.errors import nearest

_HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """Return a folder that lies beside `rcg` in a checkout, and inside of it where rcg was installed."""
    installed = _HERE / name
    return installed if installed.is_dir() else _HERE.parent / name


def tools() -> dict[str, Path]:
    """Return the tools by their names as commands."""
    return {path.stem.replace("_", "-"): path for path in sorted(folder("tools").glob("[a-z]*.py"))}


def main() -> None:
    """Run the tool that the command line names; exit with code 2 and one sentence if there is none."""
    known = tools()
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else "--help"
    if name in known:
        del sys.argv[1]
        runpy.run_path(str(known[name]), run_name="__main__")
    elif name in ("-h", "--help"):
        print(_help(known))
    elif name == "--version":
        print(f"rcg {__version__}")
    elif name == "configs":
        print(folder("configs"))
    else:
        sys.exit(_complain(f"rcg has no tool {name!r}; {nearest(name, known)}"))


def _complain(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def _help(known: dict[str, Path]) -> str:
    width = max(map(len, known), default=0)
    lines = [f"  {name:{width}}  {_first_line(path)}" for name, path in known.items()]
    return "\n".join([(__doc__ or "").strip(), "", "tools:", *lines])


def _first_line(tool: Path) -> str:
    description = ast.get_docstring(ast.parse(tool.read_text(encoding="utf-8"))) or ""
    return description.partition("\n")[0]


if __name__ == "__main__":
    main()
