"""Data sets in torchvision's formats, from small files written by the tests."""

import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.images import load_images

FETCHED = ["mnist", "fashion_mnist", "cifar10", "stl10"]


def source(name: str, **keys: Any) -> Any:
    cls = DATASETS.get(name)
    return cls(cls.Config(**keys))


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small fakes pass where torchvision compares the checksums of the real files."""
    for module in (datasets.cifar, datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


def write_mnist(folder: Path) -> np.ndarray:
    """Write both splits in the IDX format; return the training images `(5, 28, 28)`."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for split, count in (("train", 5), ("t10k", 2)):
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images[:count].tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(range(count)))
    return images


def write_cifar10(folder: Path) -> np.ndarray:
    """Write the pickled batches; return the training images `(10, 3, 32, 32)`."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    for number in range(5):
        batch = {"data": images[2 * number : 2 * number + 2], "labels": [number, 9 - number]}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images[:1], "labels": [0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    return images.reshape(10, 3, 32, 32)


def write_stl10(folder: Path) -> np.ndarray:
    """Write the column-major binary files; return the 2 labeled and 3 unlabeled images `(5, 3, 96, 96)`."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    stored = images.transpose(0, 1, 3, 2)
    for name, part in (("train_X", stored[:2]), ("unlabeled_X", stored[2:]), ("test_X", stored[:1])):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))
    (folder / "test_y.bin").write_bytes(bytes([1]))
    (folder / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(10)))
    return images


def write_imagenet(root: Path) -> None:
    """Write what torchvision unpacks from the two archives: three images of two classes."""
    for name in ("n01/n01_1.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"):
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (0, 0, 255)).save(root / "train" / name)
    torch.save(({"n01": ("tench", "Tinca tinca"), "n02": ("crane",)}, []), root / "meta.bin")


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_become_gray_images_with_labels(tmp_path: Path, name: str, folder: str) -> None:
    images = write_mnist(tmp_path / folder / "raw")
    data = source(name, root=tmp_path)
    assert len(data) == 5
    assert torch.equal(data.load(3), torch.from_numpy(images[3]).expand(3, -1, -1))
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(data.classes) == 10
    assert data.in_memory


@pytest.mark.usefixtures("any_checksum")
def test_cifar10_batches_become_color_images_with_labels(tmp_path: Path) -> None:
    images = write_cifar10(tmp_path / "cifar-10-batches-py")
    data = source("cifar10", root=tmp_path)
    assert len(data) == 10
    assert torch.equal(data.load(7), torch.from_numpy(images[7]))
    assert data.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert data.classes[2] == "class 2"
    assert data.in_memory


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize(("split", "chosen"), [("unlabeled", [2, 3, 4]), ("train+unlabeled", [0, 1, 2, 3, 4])])
def test_stl10_with_unlabeled_images_has_no_labels(tmp_path: Path, split: str, chosen: list[int]) -> None:
    images = write_stl10(tmp_path / "stl10_binary")
    data = source("stl10", root=tmp_path, split=split)
    assert data.labels is None
    assert data.classes == ()
    assert torch.equal(torch.stack([data.load(n) for n in range(len(data))]), torch.from_numpy(images[chosen]))


@pytest.mark.usefixtures("any_checksum")
def test_stl10s_training_split_counts_its_labels_from_zero(tmp_path: Path) -> None:
    write_stl10(tmp_path / "stl10_binary")
    data = source("stl10", root=tmp_path)
    assert data.labels.tolist() == [0, 9]
    assert data.labels.dtype == torch.int64
    assert data.classes[9] == "class 9"


def test_imagenet_reads_the_unpacked_training_split(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    data = source("imagenet", root=tmp_path)
    assert data.labels.tolist() == [0, 1, 1]
    assert data.classes == ("tench, Tinca tinca", "crane")
    assert data.load(2).shape == (3, 20, 30)
    assert not data.in_memory
    fingerprint = data.fingerprint
    (tmp_path / "train" / "n02" / "n02_2.JPEG").rename(tmp_path / "train" / "n02" / "n02_3.JPEG")
    assert source("imagenet", root=tmp_path).fingerprint != fingerprint


@pytest.mark.usefixtures("any_checksum")
def test_the_fingerprint_follows_the_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    images = write_cifar10(folder)
    first, again = (source("cifar10", root=tmp_path).fingerprint for _ in range(2))
    images[0, 0, 0, 0] ^= 1
    batch = {"data": images[:2].reshape(2, 3072), "labels": [0, 9]}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch))
    assert first == again
    assert source("cifar10", root=tmp_path).fingerprint != first


def test_a_loaded_data_set_is_split_and_resized(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    train, validation = load_images(DATASETS.get("mnist").Config(root=tmp_path, image_size=16, validation=0.4))
    assert (len(train), len(validation)) == (3, 2)
    assert train[0]["image"].shape == (3, 16, 16)


@pytest.mark.parametrize("name", FETCHED)
def test_missing_files_are_answered_with_the_key_that_fetches_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' is missing .*{tmp_path}/.* set data\.download=true") as caught:
        source(name, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_answered_like_missing_ones(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    os.truncate(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", 500)
    with pytest.raises(UserError, match="'mnist' is missing or damaged"):
        source("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "cls"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("cifar10", "CIFAR10"), ("stl10", "STL10")]
)
def test_a_failed_download_says_where_and_why_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cls: str
) -> None:
    def offline(self: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(getattr(datasets, cls), "download", offline)
    with pytest.raises(UserError, match=f"'{name}' could not be downloaded into {tmp_path}: no route to host"):
        source(name, root=tmp_path, download=True)


def test_missing_imagenet_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz and ILSVRC2012_img_train\.tar"):
        source("imagenet", root=tmp_path)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        source("digits")
