"""A part of a run whose file somebody edited: one sentence names file and key, in little time and memory."""

import copy
import json
import random
import struct
import time
import tracemalloc

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.encoding.encoder import load_encoder
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.vectors import read_representations
from tests.small import COMPONENTS, VECTORS, make_part, restore_part

EDITS = [10**9, 10**5, 0, -1, 1.5, "x", None, [], [1], {}, True, [10**6] * 3]
QUICK = ("moco_v3", "kl", "rep_mlp", "dit")
"""The components that every run of the tests edits, one of each kind; `make test-slow` edits all."""
FULL_SIZE = ("swav", "vicreg", "diffusers")
"""Components without small settings, whose tests are slow."""
parts = pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair[1] in FULL_SIZE else ()) for pair in COMPONENTS],
)


@pytest.fixture(scope="module")
def made():
    """Build each part once."""
    found = {}

    def make(kind, name):
        if (kind, name) not in found:
            found[kind, name] = make_part(kind, name)
        return found[kind, name]

    return make


def header_of(part):
    return {"kind": part.kind, "config": part.config, "facts": part.facts.model_dump(mode="json")}


def write(path, header, tensors):
    checkpoint._write(path, tensors, header)
    return path


def leaves(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key not in ("train", "weights", "network"):
            yield from leaves(child, (*path, key))


def edited(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = edited(value[path[0]], path[1:], new)
    return value


@parts
def test_a_part_comes_back_from_its_file(kind, name, made, tmp_path):
    part = made(kind, name)
    checkpoint.save(tmp_path / "model.safetensors", part)
    restored = restore_part(checkpoint.load(tmp_path / "model.safetensors", kind))
    for key, value in restored.state_dict().items():
        assert torch.equal(value, part.tensors[key]), key


class Largest(TorchDispatchMode):
    """Notes how large the largest tensor in memory was; Python's own tracing does not see tensors."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and not x.is_meta:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return made


def test_the_largest_tensor_is_seen():
    with Largest() as largest, torch.device("meta"):
        torch.zeros(10**6)
        torch.zeros(2, 3, device="cpu").expand(10**6, 2, 3)
    assert largest.bytes == 24


def outcome(part, header):
    """Restore a part with another header; return what is said against it, None where it serves as well."""
    try:
        values = checkpoint._Header.model_validate(header)
    except ValidationError:
        return None  # `load` turns it into a sentence
    try:
        restore_part(Part(part.kind, values.config, values.facts, part.tensors, "model.safetensors"))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(*pair, marks=() if pair[1] in QUICK else pytest.mark.slow) for pair in COMPONENTS]
)
def test_no_edit_of_a_header_gives_more_than_a_sentence(kind, name, made):
    part = made(kind, name)
    header = json.loads(json.dumps(header_of(part)))
    edits = [(path, 10**9) for path in leaves(header)] + [
        (path, new) for path in leaves(header) for new in random.Random(f"{path}").sample(EDITS, 1)
    ]
    for path, new in edits:
        began = time.process_time()
        tracemalloc.start()
        with Largest() as largest:
            said = outcome(part, edited(header, path, new))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert said is None or said.startswith("model.safetensors"), (path, new)
        assert "\n" not in (said or ""), (path, new)
        assert max(peak, largest.bytes) < 2**28, (path, new)
        assert time.process_time() - began < 10, (path, new)


@parts
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.double(), "is of torch.float64 instead of torch.float32"),
        (lambda t: t.long(), "is of torch.int64 instead of torch.float32"),
        (lambda t: t[:-1], "instead of"),
        (None, "it lacks"),
        ("extra", "it has also"),
    ],
)
def test_tensors_that_the_config_does_not_describe_are_refused(kind, name, change, sentence, made):
    part = made(kind, name)
    floats = [key for key, value in part.tensors.items() if value.is_floating_point() and value.ndim]
    if not floats:
        pytest.skip("it has no weights")
    key, tensors = floats[0], dict(part.tensors)
    if change == "extra":
        tensors["x"] = torch.zeros(1)
    elif change is None:
        del tensors[key]
    else:
        tensors[key] = change(tensors[key])
    with pytest.raises(UserError, match=sentence) as error:
        restore_part(Part(kind, part.config, part.facts, tensors, "model.safetensors"))
    assert str(error.value).startswith("model.safetensors")
    assert ("x" if change == "extra" else key) in str(error.value)


def rdm(path):
    """Write a small RDM."""
    checkpoint.save(path, make_part("rdm", "rep_mlp"))
    return path


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    part = make_part("rdm", "rep_mlp")
    key = next(iter(part.tensors))
    part.tensors[key].view(-1)[0] = value
    checkpoint.save(tmp_path / "rdm.safetensors", part)
    with pytest.raises(UserError, match=rf"rdm.safetensors: {key} holds values that are infinite or no numbers"):
        checkpoint.load(tmp_path / "rdm.safetensors")
    checkpoint.save_tensors(tmp_path / "fitted.safetensors", {"mean": torch.tensor([value])}, {})
    with pytest.raises(UserError, match=r"fitted.safetensors: mean holds values"):
        checkpoint.load_tensors(tmp_path / "fitted.safetensors")


@pytest.mark.parametrize(
    ("path", "new", "key"),
    [
        (("kind",), 3, "kind"),
        (("config",), [], "config"),
        (("facts",), None, "facts"),
        (("facts", "step"), "many", "facts.step"),
        (("facts", "data"), {"id": "x"}, "facts.data.shape"),
        (("facts", "data"), "x", "facts.data"),
        (("facts", "data", "shape"), [-6], "facts.data"),
        (("facts", "data", "shape"), [3, 16, 99], "facts.data"),
        (("facts", "data", "vocab"), [], "facts.data.vocab"),
        (("facts", "cluster_counts"), [-1], "facts.cluster_counts"),
    ],
)
def test_the_key_of_a_wrong_field_is_named(path, new, key, tmp_path):
    part = make_part("rdm", "rep_mlp")
    file = write(tmp_path / "rdm.safetensors", edited(json.loads(json.dumps(header_of(part))), path, new), part.tensors)
    with pytest.raises(UserError, match=rf"rdm.safetensors is no trained part.*\({key}"):
        checkpoint.load(file)


@pytest.mark.parametrize("missing", ["kind", "config", "facts"])
def test_a_missing_field_is_named(missing, tmp_path):
    part = make_part("rdm", "rep_mlp")
    header = {key: value for key, value in header_of(part).items() if key != missing}
    with pytest.raises(UserError, match=rf"\({missing} in its header: Field required"):
        checkpoint.load(write(tmp_path / "rdm.safetensors", header, part.tensors))


@pytest.mark.parametrize("name", [["rep_mlp"], None, 3, {}])
def test_a_name_that_is_none_is_refused(name):
    part = make_part("rdm", "rep_mlp")
    with pytest.raises(UserError, match=r"rdm.safetensors: the rdm's checkpoint names no component: config.name is"):
        restore_part(Part("rdm", part.config | {"name": name}, part.facts, part.tensors, "rdm.safetensors"))


def raw(path, header, data=b""):
    """Write a safetensors file byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin, end):
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"__metadata__": {"rcg": "[" * 100_000}}, b""),
        ({"__metadata__": {"rcg": ""}}, b""),
        ({"__metadata__": {"rcg": "3"}}, b""),
        ({"__metadata__": {"rcg": "{}"}}, b""),
        ({"__metadata__": {"rcg": 3}}, b""),
        ({"__metadata__": {}}, b""),
        ({"__metadata__": {"rcg": "{}"}, "a": tensor(0, 4), "b": tensor(0, 4)}, b"0000"),
        ({"__metadata__": {"rcg": "{}"}, "a": tensor(0, 4), "b": tensor(2, 6)}, b"000000"),
        ({"__metadata__": {"rcg": "{}"}, "a": tensor(0, 4)}, b"00000000"),
        ({"__metadata__": {"rcg": "{}"}, "a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, b"0000"),
        (b"[" * 100_000, b""),
        (b"{", b""),
        (b"\xff\xfe", b""),
    ],
)
def test_a_file_with_a_broken_header_is_named(header, data, tmp_path):
    path = raw(tmp_path / "model.safetensors", header, data)
    assert not checkpoint.is_part(path) or isinstance(header, dict)
    for load in (checkpoint.load, checkpoint.load_tensors):
        with pytest.raises(UserError, match=r"model\.safetensors (is|has|holds) "):
            load(path)


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UserError, match="is truncated"):
        checkpoint.load(path)


def test_a_part_of_another_kind_is_refused_wherever_one_is_expected(tmp_path):
    run = RunFolder(tmp_path)
    for stage in (run.encoder, run.autoencoder, run.stage_folder("dit")):
        rdm(stage.checkpoint)
        with pytest.raises(UserError, match=r"kind is 'rdm' instead of"):
            stage.part()
    with pytest.raises(UserError, match=r"kind is 'rdm' instead of 'encoder'"):
        load_encoder(run.encoder.checkpoint)
    with pytest.raises(UserError, match=r"kind is 'rdm' instead of 'representations'"):
        read_representations(run.encoder.checkpoint, VECTORS, 1)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "must hold a floating-point tensor 'z'"),
        ({"z": torch.zeros(3, 7)}, "holds z of 7 numbers"),
        ({"z": torch.zeros(3, 6, dtype=torch.int64)}, r"of torch.int64"),
        ({"z": torch.full((3, 6), torch.nan)}, "z is not finite in 3 of 3 rows"),
        ({"z": torch.zeros(3, 6)}, "holds 3 representations"),
    ],
)
def test_representations_that_do_not_fit_are_refused(tensors, said, tmp_path):
    path = tmp_path / "z.safetensors"
    checkpoint.save(path, Part("representations", {}, Facts(data=VECTORS), tensors))
    with pytest.raises(UserError, match=said):
        read_representations(path, VECTORS, 4)
