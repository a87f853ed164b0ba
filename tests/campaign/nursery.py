"""A program that runs tools in forks of itself, so that each costs no import: kill campaigns need many of them.

It reads one JSON request a line, answers with the process's id, and then with its wait status.
"""

import importlib
import json
import os
import resource
import runpy
import sys

MODULES = [
    "torchvision.transforms.v2",
    "matplotlib.figure",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.cluster",
]
MODULES += ["rcg.comparison.compare", "rcg.comparison.report", "rcg.encoding.workspace", "rcg.evaluation.plan"]
MODULES += ["rcg.training.stages", "rcg.encoders.moco_v3", "rcg.generators.dit", "rcg.generators.autoencoders.kl"]


def main() -> None:
    for module in MODULES:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(**request)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def run(tool: str, argv: list[str], out: str, limit: int | None) -> None:
    """Be the tool, and end; `limit` is the size in bytes of the largest file that it may write."""
    os.setpgrp()
    output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [tool, *argv]
    code = 1
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
