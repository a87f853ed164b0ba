"""Files of representations, and of vectors to condition on: read by one reader, which trusts nothing."""

import pytest
import torch
from safetensors.torch import save_file

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.encoding.vectors import read_representations, read_vectors, save_representations

SPACE = Space((3,), id="z")
GOOD = torch.randn(5, 3)
BROKEN = {
    "wide": (torch.zeros(5, 4), "holds z of 4 numbers"),
    "integers": (torch.zeros(5, 3, dtype=torch.long), r"it holds z \(5, 3\) of torch.int64"),
    "a number": (torch.tensor(1.0), "floating-point tensor 'z' of shape"),
    "nan": (torch.where(torch.arange(5)[:, None] == 2, torch.nan, GOOD), "z is not finite in 1 of 5 rows, row 2 first"),
    "inf": (torch.full((5, 3), torch.inf), "z is not finite in 5 of 5 rows, row 0 first"),
    "too few": (GOOD[:3], "holds 3 representations: --num 5 is more"),
}


def test_what_was_written_is_read(tmp_path):
    save_representations(tmp_path / "z.safetensors", GOOD, SPACE, 0, {"label": torch.arange(5)})
    assert torch.equal(read_representations(tmp_path / "z.safetensors", SPACE, 5), GOOD)
    save_representations(tmp_path / "half.safetensors", GOOD.half(), SPACE, 0, {})
    assert read_representations(tmp_path / "half.safetensors", SPACE, 1).dtype == torch.float32


@pytest.mark.parametrize("kind", BROKEN)
def test_representations_that_cannot_be_meant_are_refused(kind, tmp_path):
    z, sentence = BROKEN[kind]
    save_representations(tmp_path / "z.safetensors", z, SPACE, 0, {})
    with pytest.raises(UserError, match=sentence):
        read_representations(tmp_path / "z.safetensors", SPACE, 5)


def test_a_file_without_representations_or_of_others_is_refused(tmp_path):
    path = tmp_path / "z.safetensors"
    checkpoint.save(path, Part("representations", {}, Facts(data=SPACE), {"label": torch.arange(5)}))
    with pytest.raises(UserError, match=r"tensor 'z' of shape \(N, D\); it holds label \(5,\)"):
        read_representations(path, SPACE, 5)
    save_representations(path, GOOD, SPACE, 0, {})
    for cond in (None, Space((3,), id="other")):
        with pytest.raises(UserError, match="but the generator is conditioned on"):
            read_representations(path, cond, 5)


@pytest.mark.parametrize("kind", ["integers", "a number", "nan", "inf"])
def test_vectors_are_read_alike(kind, tmp_path):
    save_file({"vectors": BROKEN[kind][0]}, tmp_path / "v.safetensors")
    with pytest.raises(
        UserError,
        match=BROKEN[kind][1].replace(" z ", " vectors ").replace("'z'", "'vectors'").replace("z is", "vectors is"),
    ):
        read_vectors(tmp_path / "v.safetensors")
