"""Sets of images: what counts as a sample, pictures that are written once, and images that changed since training."""

import platform
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from rcg.core.checkpoint import Facts
from rcg.core.errors import UserError
from rcg.evaluation.extractors import FeatureExtractor
from rcg.evaluation.features import extract
from rcg.evaluation.plan import changed_images
from rcg.evaluation.samples import folder_images
from rcg.visual.curves import draw_curves
from rcg.visual.grids import save_gallery, save_image, save_rows


def write(folder, count, side=16):
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        save_image(torch.rand(3, side, side, generator=generator), folder / f"{index:06d}.png")
    return folder


def test_what_our_tools_draw_is_no_sample(tmp_path):
    write(tmp_path / "images", 5)
    shades = torch.rand(5, 3, 16, 16)
    save_gallery(shades, [""] * 5, "title", tmp_path / "gallery.png")
    save_rows({"a": shades}, "title", tmp_path / "compare.png")
    draw_curves({"rdm": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]}, tmp_path / "curves.png")
    (tmp_path / "images" / ".000092.png.13175").write_bytes((tmp_path / "images" / "000000.png").read_bytes())
    found = folder_images(tmp_path, None)
    assert (len(found), found.size) == (5, 16)
    (doubt,) = found.doubts
    assert "left out compare.png, curves.png, gallery.png in " in doubt
    assert folder_images(tmp_path / "images", None).images.fingerprint
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no pictures but drawings that this program wrote"):
        folder_images(tmp_path, None)


def test_pictures_of_several_sizes_are_refused_by_the_names_of_the_odd_ones(tmp_path):
    write(tmp_path, 6)
    Image.new("RGB", (1, 1)).save(tmp_path / "-pixel.png")
    Image.new("RGB", (40, 16)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"3 sizes: 6 of 16 x 16 px, and 2 of others \(-pixel.png, wide.png\)"):
        folder_images(tmp_path, None)
    found = folder_images(tmp_path, 16)
    assert (len(found), found.size) == (8, 16)
    assert found.doubts == (f"{tmp_path}: 1 of 8 pictures are smaller than 16 px, and enlarged: -pixel.png",)
    assert not folder_images(write(tmp_path / "plain", 3), None).doubts


class Counting:
    """A source of images that remembers which were asked for."""

    def __init__(self, source):
        self.source, self.asked, self.facts, self.size = source, [], source.facts, source.size

    def __len__(self):
        return len(self.source)

    def batches(self, positions):
        self.asked += list(positions)
        return self.source.batches(positions)


def test_pictures_that_were_deleted_are_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.evaluation.features.SHARD_SIZE", 4)
    source = Counting(folder_images(write(tmp_path / "in", 10), None))
    out, accelerator = tmp_path / "out", Accelerator(cpu=True)

    def run():
        source.asked.clear()
        mean = FeatureExtractor("mean", {}, lambda batch: {"m": batch.images.float().mean((2, 3))}, ("m",))
        features = extract(source, [mean], tmp_path / "cache", accelerator, "samples", out)
        assert set(features) == {"mean"}
        return list(source.asked)

    assert run() == list(range(10))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == [f"{index:06d}.png" for index in range(10)]
    assert run() == []
    (out / "000005.png").unlink()
    (out / f".writing-{platform.node()}-99999999-000005.png.part").write_bytes(b"torn")  # no process has this number
    assert run() == [4, 5, 6, 7]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    assert run() == list(range(10))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_features_that_are_not_finite_are_refused(tmp_path):
    source = folder_images(write(tmp_path / "in", 3), None)
    broken = FeatureExtractor("broken", {}, lambda batch: {"m": batch.images.flatten(1) / 0.0}, ("m",))
    with pytest.raises(UserError, match="what broken computes of the samples is not finite"):
        extract(source, [broken], tmp_path / "cache", Accelerator(cpu=True), "samples")


@pytest.mark.parametrize(
    ("generator", "rdm", "said"),
    [("new", "new", None), ("", "new", None), ("old", "new", "generator were not"), ("new", "old", "rdm were not")],
)
def test_images_that_changed_since_training_are_noticed(tmp_path, generator, rdm, said):
    prints = {"generator": generator, "rdm": rdm}
    parts = {kind: SimpleNamespace(facts=Facts(fingerprint=fingerprint)) for kind, fingerprint in prints.items()}
    train = folder_images(write(tmp_path, 2), None)
    train.images.fingerprint = "new"
    found = changed_images(SimpleNamespace(parts=parts), train)
    assert (found is None) if said is None else (said in found)
