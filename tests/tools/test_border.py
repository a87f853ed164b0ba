"""Where tools meet the world: arguments, files, folders, memory and Ctrl-C, each in one sentence."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from rcg import cli
from rcg.core.errors import Stopped
from tests.toy import ROOT, complaint, snapshot, tool, write

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
TRAININGS = ["train_encoder", "train_autoencoder", "train_rdm", "train_pixel"]
CONFIG_TOOLS = [*TRAININGS, "cache", "compare", "inspect_encoder", "sample_rdm", "sweep_rdm"]


def outcome(run, capsys):
    """Return the exit code of a program that does `run`, and what it said."""
    parser = cli.parser_for("Do.\n\npython tools/do.py RUN")
    with pytest.raises(SystemExit) as end:
        cli.main(parser, run, [])
    return end.value.code, capsys.readouterr().err


def raising(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/model"), "runs/a/model: no space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), "runs/a: read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "data/a.png"), "data/a.png: permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: invalid cross-device link"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ConnectionError("host unreachable"), "host unreachable"),
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 7 TiB"), "Unable to allocate 7 TiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2 vs 1"), "is the disk full?"),
    ],
    ids=str,
)
def test_what_the_machine_refuses_is_one_sentence(error, words, capsys):
    code, text = outcome(raising(error), capsys)
    assert code == 2
    assert text.startswith("error: ")
    assert words in text
    assert len(text.splitlines()) == 1


def test_ctrl_c_is_one_sentence(capsys):
    code, text = outcome(raising(KeyboardInterrupt()), capsys)
    assert (code, text.count("\n")) == (130, 1)
    assert "interrupted" in text


@pytest.mark.parametrize("error", [Stopped("stopped at step 3", signal.SIGINT), KeyboardInterrupt()], ids=str)
def test_another_ctrl_c_changes_nothing_about_a_program_that_ends(error, capsys, monkeypatch):
    def interrupted(text):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    monkeypatch.setattr(cli, "say", interrupted)
    monkeypatch.setattr(cli, "complain", interrupted)
    assert outcome(raising(error), capsys) == (128 + signal.SIGINT, "")


def _wait_until(condition):
    deadline = time.time() + 300
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("working", [False, True])
def test_ctrl_c_stops_a_program_and_its_workers_in_one_sentence(working, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(2000):
        Image.new("RGB", (64, 64), (i % 256, i // 256, 0)).save(pictures / f"{i}.bmp")
    path = write(
        tmp_path,
        data={"name": "image_folder", "root": str(pictures), "image_size": 64},
        encoder={"name": "timm_model", "model": "resnet50", "weights": "none", "input_size": 224},
    )
    command = [sys.executable, str(ROOT / "tools" / "cache.py"), str(path)]
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file, subprocess.Popen(command, stderr=file, start_new_session=True) as process:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _wait_until(workers.read_text if working else (tmp_path / "run").exists)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    text = errors.read_text()
    assert process.returncode == 130, text
    assert [line for line in text.splitlines() if line.startswith("error: ")] == [text.splitlines()[-1]]
    assert "Traceback" not in text


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cli.main(cli.parser_for(""), raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), [])


@pytest.mark.parametrize("name", TOOLS)
def test_no_tool_advises_a_launcher_that_takes_its_options_for_its_own(name):
    assert "torchrun" not in tool(name, "--help").stdout  # it refuses --num as ambiguous


@pytest.mark.parametrize("name", TOOLS)
def test_no_tool_takes_half_an_option(name, tmp_path):
    done = tool(name, *(["x"] * 3), "--hel")
    assert complaint(done)  # --help itself would end with 0


@pytest.mark.parametrize("name", [name for name in TOOLS if name != "list_encoders"])
def test_a_bare_call_says_what_to_type(name):
    sentence = complaint(tool(name))
    assert f"tools/{name}.py" in sentence.split("for example: ")[1]


@pytest.mark.parametrize("name", CONFIG_TOOLS)
@pytest.mark.parametrize(
    ("typed", "right"),
    [
        (["--rdm.width", "12"], "rdm.width=12"),
        (["--rdm.width=12"], "rdm.width=12"),
        (["--image_size=4"], "data.image_size=4"),
        (["--image-size", "4"], "data.image_size=4"),
    ],
)
def test_a_key_that_is_typed_like_an_option_is_answered_with_its_spelling(name, typed, right, tmp_path):
    assert right in complaint(tool(name, write(tmp_path), *typed))


def test_an_option_with_an_underscore_is_answered_with_its_spelling():
    assert "did you mean --batch-size?" in complaint(tool("sample", "run", "--batch_size=4"))
    assert "did you mean '--guidance'?" in complaint(tool("sample", "run", "--guidence", "4"))


NUMBERS = {
    "--num": ["0", "-1", "1.5", "x", "nan", "99999999999999999999", "1e20", "true", "\N{SUPERSCRIPT TWO}", "9" * 5000],
    "--seed": ["-1", "1.5", str(2**63), str(2**64), "nan"],
    "--batch-size": ["0", "1e10", "-4"],
    "--guidance": ["-1", "nan", "inf", "1e38", "x"],
    "--steps": ["0", "1e9", "1.5"],
    "--rdm-steps": ["0", "1e9"],
    "--resamples": ["-1", "1e9"],
    "--size": ["0", "1e9"],
    "--class": ["-1", "1.5", "1e30"],
    "--probe": ["-1", "nan"],
    "--sdedit-strength": ["0", "1.1", "nan"],
    "--uncrop": ["0", "nan", "2", "inf"],
}
ARGUMENTS = {"inpaint": ["run", "--image", "x.png"]}


@pytest.mark.parametrize("name", TOOLS)
def test_every_number_has_a_range(name):
    text = tool(name, "--help").stdout
    for option in (option for option in NUMBERS if option in text):
        for typed in NUMBERS[option]:
            sentence = complaint(tool(name, *ARGUMENTS.get(name, ["run"]), f"{option}={typed}"))
            assert f"argument {option}" in sentence, typed
            assert len(sentence) < 300


@pytest.mark.parametrize("edges", [["nan"] * 4, ["inf", "0", "1", "1"], ["-0.1", "0", "1", "1"]])
@pytest.mark.parametrize("option", ["--box", "--outside"])
def test_the_edges_of_a_box_are_shares(option, edges):
    assert f"argument {option}" in complaint(tool("inpaint", "run", "--image", "x.png", option, *edges))


@pytest.mark.parametrize("text", ["1e3", "1_000", "1000"])
def test_a_whole_number_may_be_written_in_any_way(text):
    assert cli.whole(1, 10**6)(text) == 1000


def test_a_home_folder_is_found_in_every_argument(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.path("~/a") == Path("/home/me/a")
    for name in TOOLS:
        assert "type=Path" not in (ROOT / "tools" / f"{name}.py").read_text()


OUTPUTS = {
    "sample": ["{run}", "--out"],
    "evaluate": ["{run}", "--out"],
    "sample_rdm": ["{config}", "--out"],
    "inspect_encoder": ["{config}", "--out"],
    "compare": ["{config}", "--out"],
    "inpaint": ["{run}", "--image", "{file}", "--out"],
    "report": ["{run}", "--out"],
}
FILES = ("inpaint", "report")


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("place", ["file", "below a file", "folder for a file", "unwritable"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(name, place, toy_run, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    paths = {
        "file": file / "x.png" if name in FILES else file,
        "below a file": file / "a" / "b",
        "folder for a file": tmp_path if name in FILES else file,
        "unwritable": Path("/proc/no/such"),
    }
    known = {"{run}": toy_run / "run", "{config}": toy_run / "toy.yaml", "{file}": file}
    before = snapshot(tmp_path), snapshot(toy_run)
    sentence = complaint(tool(name, *(known.get(item, item) for item in OUTPUTS[name]), paths[place]))
    assert str(paths[place]) in sentence or "/proc/no" in sentence
    assert (snapshot(tmp_path), snapshot(toy_run)) == before


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("place", ["toy.yaml", "toy.yaml/below"])
def test_a_run_that_is_a_file_is_refused(name, place, tmp_path):
    path = write(
        tmp_path, generator={"name": "mage", "autoencoder": {"name": "vqgan", "train": {"perceptual": "none"}}}
    )
    before = snapshot(tmp_path)
    assert "toy.yaml is a file, not a folder" in complaint(tool(name, path, f"run={tmp_path / place}"))
    assert snapshot(tmp_path) == before


def test_a_stage_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder").write_text("mine")
    sentence = complaint(tool("train_encoder", write(tmp_path)))
    assert "encoder is a file, not a folder" in sentence


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("sample", []), ("summary", []), ("report", []), ("inpaint", ["--image", "x.png"]), ("evaluate", [])],
)
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("run/dit", "give that of its run, {}/run"),
        ("run/dit/model.safetensors", "is a file"),
        (".", "give one of them ({}/run)"),
        ("rum", "did you mean 'run'?"),
    ],
)
def test_a_place_that_is_no_run_is_answered_with_the_run_that_is_meant(name, arguments, place, words, toy_run):
    if name == "evaluate" and place != "rum":
        return  # it also takes folders of images, and files
    before = snapshot(toy_run)
    sentence = complaint(tool(name, toy_run / place, *arguments))
    assert words.format(toy_run) in sentence, sentence
    assert snapshot(toy_run) == before


@pytest.mark.parametrize("name", CONFIG_TOOLS)
def test_a_folder_for_a_configuration_is_answered_with_those_it_holds(name, toy_run):
    assert f"is a folder: give a YAML file ({toy_run}/toy.yaml" in complaint(tool(name, toy_run))


def test_trying_an_output_leaves_no_trace(tmp_path):
    assert cli.output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert cli.output_file(tmp_path / "a" / "b.png") == tmp_path / "a" / "b.png"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=str(tmp_path)):
        cli.output_folder(tmp_path / "a")


def test_the_precision_is_named_as_it_was_asked_for(toy_run, tmp_path):
    pytest.importorskip("torch")
    if sys.modules["torch"].cuda.is_available():
        pytest.skip("there is a GPU")
    sentence = complaint(tool("sample", toy_run / "run", "--precision", "fp16", "--out", tmp_path / "out"))
    assert "train.precision" not in sentence
    assert "precision fp16 needs a GPU" in sentence
    assert "train.precision=fp16" in complaint(tool("train_encoder", write(tmp_path), "encoder.train.precision=fp16"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samplers", "ddim", "maskgit"], "the RDM cannot use the sampler 'maskgit'; known: ddim"),
        (["--samplers", "dimm"], "did you mean 'ddim'?"),
        (["--steps", "4", "2000"], "1000 noise levels"),
        (["--num", "1"], "expected a whole number from 2"),
    ],
)
def test_a_sweep_of_what_the_rdm_cannot_do_is_refused_before_the_work(arguments, words, toy_run):
    before = snapshot(toy_run)
    assert words in complaint(tool("sweep_rdm", toy_run / "toy.yaml", *arguments))
    assert snapshot(toy_run) == before


def test_a_forgotten_override_is_answered_with_what_to_repeat(toy_copy, tmp_path):
    sentence = complaint(tool("train_rdm", toy_copy, "encoder.depth=2", "--overwrite"))
    assert f"repeat them, or give {tmp_path / 'run' / 'encoder' / 'config.yaml'}" in sentence
    sentence = complaint(tool("train_pixel", toy_copy, "generator.depth=3", "--resume"))
    assert f"repeat them, or give {tmp_path / 'run' / 'dit' / 'config.yaml'}" in sentence


def test_waiting_threads_do_not_spin():
    """The policy is set before torch is loaded, which reads it once."""
    script = (
        "import os, sys; from rcg import cli\n"
        "def run(arguments): print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
        "cli.main(cli.parser_for('No options.'), run, [])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "PASSIVE False\n"
