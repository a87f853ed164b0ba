"""Weight files of other programs: what they are, whatever they are called, and that nothing in them runs."""

import argparse
import contextlib
import gzip
import io
import pickle
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rcg.core import pretrained
from rcg.core.errors import UserError

W = torch.arange(6.0).view(2, 3)
RAN = []


class Evil:
    """Runs code when it is unpickled in the ordinary way."""

    def __reduce__(self):
        return RAN.append, ("code",)


def torch_bytes(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content):
    return torch_bytes(content, _use_new_zipfile_serialization=False)


def zipped(compression=zipfile.ZIP_STORED, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), file)
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b'{"error": "not found"}', "is a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (gzip.compress(b"weights", mtime=0), "is compressed by gzip: unpack it"),
        (b"BZh91AY&SY", "is compressed by bzip2"),
        (b"\xfd7zXZ\x00\x00", "is compressed by xz"),
        (tarred(), "is a tar archive: unpack it"),
        (zipped(), "is an empty zip archive"),
        (zipped(a="weights"), "is a zip archive of other files"),
        (zipped(zipfile.ZIP_DEFLATED, a__data_pkl=b"0" * 999), "is compressed"),
        (scripted(), "is a TorchScript archive"),
        (npy(), "is a NumPy array"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
        (b"\x00\x01\x02", "is truncated or not a weight file"),
        (torch_bytes({"a": W})[:700], "is truncated"),
        (torch_bytes({"a": W})[:-30], "is truncated"),
        (legacy({"a": torch.zeros(9999)})[:5000], "is truncated"),
        (legacy({"a": W})[:60], "is truncated"),
        (pickle.dumps({"a": 1}, protocol=4), "cannot be read without running code"),
        (pickle.dumps({"a": 1}, protocol=2), "is truncated or damaged"),
        (torch_bytes([W]), "must hold a dictionary of tensors, not list"),
        (torch_bytes(nn.Linear(2, 2)), "cannot be read without running code"),
        (
            torch_bytes({"epoch": 3, "optimizer": {}}),
            "holds no weights, plain or under .*it holds 'epoch', 'optimizer'",
        ),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_holds_no_weights_is_called_what_it_is(content, sentence, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        pretrained.read_weights(path)
    assert str(path) in str(error.value)
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no weight file"):
        pretrained.read(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        pretrained.read(tmp_path)


@pytest.mark.parametrize("write", [torch_bytes, legacy])
def test_objects_of_other_classes_do_nothing_and_leave_the_tensors(write, tmp_path, monkeypatch):
    names = ["pytorch_lightning", "callbacks", "model_checkpoint"]
    for depth in range(len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[: depth + 1]), types.ModuleType(names[depth]))
    module = sys.modules[".".join(names)]
    callback = type("ModelCheckpoint", (), {"__module__": ".".join(names)})
    settings = type("AttributeDict", (dict,), {"__module__": ".".join(names)})
    module.ModelCheckpoint, module.AttributeDict = callback, settings
    content = {
        "state_dict": {"w": W},
        "callbacks": {callback: {"best_model_path": Path("x")}},
        "hyper_parameters": settings(lr=1.0),
        "best": [np.float64(71.3), np.arange(3), callback()],
        "args": argparse.Namespace(heads=4, out=Path("x")),
    }
    path = tmp_path / "lightning.ckpt"
    path.write_bytes(write(content))
    monkeypatch.delitem(sys.modules, ".".join(names))  # where the file is read, nobody has that library
    found = pretrained.read(path)
    assert torch.equal(pretrained.state_dict(found, path)["w"], W)
    assert found["args"].heads == 4


@pytest.mark.parametrize("write", [torch_bytes, legacy])
def test_what_cannot_be_made_harmless_is_refused_by_name(write, tmp_path):
    path = tmp_path / "code.pth"
    path.write_bytes(write({"w": W, "hook": Evil()}))
    with pytest.raises(
        UserError, match=r"code.pth cannot be read without running code that it names \(builtins.getattr"
    ):
        pretrained.read(path)
    assert RAN == []


@pytest.mark.parametrize("write", [torch_bytes, legacy, lambda content: pickle.dumps(content, protocol=2)])
@pytest.mark.parametrize("hook", ["os.system", "posix.system", "builtins.exec", "subprocess.Popen", "sys.exit"])
def test_nothing_that_a_file_names_is_called(write, hook, tmp_path):
    module, _, name = hook.rpartition(".")
    ran = tmp_path / "ran"

    class Hook:
        def __reduce__(self):
            return getattr(__import__(module), name), (f"touch {ran}",)

    path = tmp_path / "evil.pth"
    path.write_bytes(write({"w": W, "hook": Hook()}))
    with contextlib.suppress(UserError):  # PyTorch refuses some modules by name
        assert set(pretrained.read_weights(path)) == {"w"}
    assert not ran.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"epoch": 3, "model": w},
        lambda w: {"state_dict": w},
        lambda w: {"model_state_dict": w},
        lambda w: {"model": {"state_dict": w}, "optimizer": {}},
        lambda w: {"teacher": w, "student": {"w": torch.zeros(2, 3)}},
        lambda w: {"net": w},
    ],
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_the_usual_wrappers_and_prefixes_come_off(wrap, prefix, tmp_path):
    path = tmp_path / "wrapped.pth"
    torch.save(wrap({f"{prefix}w": W, f"{prefix}blocks._orig_mod.w": W}), path)
    assert list(pretrained.read_weights(path)) == ["w", "blocks.w"]


@pytest.mark.parametrize("average", pretrained.AVERAGES)
def test_the_average_is_taken_with_a_word(average, tmp_path, capsys):
    path = tmp_path / "training.pth"
    torch.save({"state_dict": {"w": W + 1}, average: {"module.w": W}}, path)
    assert torch.equal(pretrained.read_weights(path)["w"], W)
    assert f"takes the weights under '{average}', not those under 'state_dict'" in capsys.readouterr().out
    torch.save({"state_dict": {"w": W}, average: None}, path)
    assert torch.equal(pretrained.read_weights(path)["w"], W)
    assert capsys.readouterr().out == ""


def test_a_safetensors_file_is_read_whatever_it_is_called(tmp_path):
    save_file({"w": W}, tmp_path / "weights.pth")
    assert torch.equal(pretrained.read_weights(tmp_path / "weights.pth")["w"], W)
    torch.save({"w": W}, tmp_path / "weights.safetensors")
    assert torch.equal(pretrained.read_weights(tmp_path / "weights.safetensors")["w"], W)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": torch.full((2, 3), torch.nan)}, "weight holds values that are infinite or no numbers"),
        ({"bias": torch.tensor([0, torch.inf])}, "bias holds values"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int64)}, "weight is of torch.int64 instead of torch.float32"),
        ({"weight": torch.zeros(1).expand(10**9, 10**6)}, r"weight is \(1000000000, 1000000\) instead of \(2, 3\)"),
        ({"other": torch.zeros(1)}, "it has also other"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, sentence):
    with pytest.raises(UserError, match=sentence):
        pretrained.fit(nn.Linear(3, 2), nn.Linear(3, 2).state_dict() | change, "file.pth")


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    content = {"a": torch.zeros(2)}
    content["model"] = content
    torch.save(content, tmp_path / "round.pth")
    assert list(pretrained.read_weights(tmp_path / "round.pth")) == ["a"]
