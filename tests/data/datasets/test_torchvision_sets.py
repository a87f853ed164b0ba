"""Data sets in torchvision's formats, from small files written by the tests."""

import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.datasets import _torchvision
from rcg.data.images import load_images

FETCHED = ["mnist", "fashion_mnist", "cifar10", "stl10"]


def source(name: str, **keys: Any) -> Any:
    cls = DATASETS.get(name)
    return cls(cls.Config(**keys))


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
    (folder / "class_names.txt").write_text("".join(f"class {n}\n" for n in range(10)), encoding="utf-8")
    return images


def write_imagenet(root: Path) -> None:
    """Write what torchvision unpacks from the two archives: three images of two classes."""
    for name in ("n01/n01_1.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"):
        for split in ("train", "val"):
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (0, 0, 255)).save(root / split / name)
    (root / "val" / name).unlink()
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


def test_cifar10_batches_become_color_images_with_labels(tmp_path: Path) -> None:
    images = write_cifar10(tmp_path / "cifar-10-batches-py")
    data = source("cifar10", root=tmp_path)
    assert len(data) == 10
    assert torch.equal(data.load(7), torch.from_numpy(images[7]))
    assert data.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert data.classes[2] == "class 2"
    assert data.in_memory


@pytest.mark.parametrize(("split", "chosen"), [("unlabeled", [2, 3, 4]), ("train+unlabeled", [0, 1, 2, 3, 4])])
def test_stl10_with_unlabeled_images_has_no_labels(tmp_path: Path, split: str, chosen: list[int]) -> None:
    images = write_stl10(tmp_path / "stl10_binary")
    data = source("stl10", root=tmp_path, split=split)
    assert data.labels is None
    assert data.classes == ()
    assert torch.equal(torch.stack([data.load(n) for n in range(len(data))]), torch.from_numpy(images[chosen]))


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
    assert len(train) + len(validation) == 5
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


@pytest.mark.parametrize("name", FETCHED)
def test_a_failed_download_says_where_and_why_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def offline(*arguments: Any, **keys: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(_torchvision, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=f"'{name}' could not be downloaded into {tmp_path}: no route to host"):
        source(name, root=tmp_path, download=True)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_download_tries_every_mirror_and_unpacks_where_the_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build = DATASETS.get(name).build
    tried = []

    def download(url: str, root: str, md5: str) -> None:
        tried.append(url)
        if url.startswith(build.mirrors[0]) and len(build.mirrors) > 1:
            raise OSError("no route to host")
        if len(tried) == len(build.resources) * len(build.mirrors):
            write_mnist(Path(root))

    monkeypatch.setattr(_torchvision, "download_and_extract_archive", download)
    assert len(source(name, root=tmp_path, download=True)) == 5
    assert [url.rpartition("/")[2] for url in tried[:: len(build.mirrors)]] == [file for file, _ in build.resources]


def test_missing_imagenet_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither meta\.bin nor .*ILSVRC2012_devkit_t12\.tar\.gz"):
        source("imagenet", root=tmp_path)
    write_imagenet(tmp_path)
    shutil.rmtree(tmp_path / "val")
    data = source("imagenet", root=tmp_path)
    with pytest.raises(UserError, match=r"neither val nor .*ILSVRC2012_img_val\.tar.* take a share"):
        data.official_validation()


@pytest.mark.parametrize(
    ("name", "write", "count"),
    [
        ("mnist", lambda root: write_mnist(root / "MNIST" / "raw"), (5, 2)),
        ("fashion_mnist", lambda root: write_mnist(root / "FashionMNIST" / "raw"), (5, 2)),
        ("cifar10", lambda root: write_cifar10(root / "cifar-10-batches-py"), (10, 1)),
        ("stl10", lambda root: write_stl10(root / "stl10_binary"), (2, 1)),
        ("imagenet", lambda root: write_imagenet(root), (3, 2)),
    ],
)
def test_the_official_split_is_held_out_unless_a_share_is_asked_for(
    tmp_path: Path, name: str, write: Callable[[Path], object], count: tuple[int, int]
) -> None:
    write(tmp_path)
    config = DATASETS.get(name).Config(root=tmp_path, image_size=16)
    split = load_images(config)
    assert (len(split.train), len(split.validation)) == count
    assert split.validation[0]["image"].shape == (3, 16, 16)
    assert split.validation.classes == split.train.classes
    assert split.validation.labels is not None
    shared = load_images(config.model_copy(update={"validation": 0.5}))
    assert len(shared.train) + len(shared.validation) == count[0]
    assert shared.validation.source is shared.train.source


def test_stl10_without_labels_is_validated_without_labels(tmp_path: Path) -> None:
    write_stl10(tmp_path / "stl10_binary")
    train, validation = load_images(DATASETS.get("stl10").Config(root=tmp_path, split="train+unlabeled"))
    assert (len(train), len(validation)) == (5, 1)
    assert validation.labels is None


def test_imagenet_names_and_numbers_the_validation_classes_as_the_training_classes(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    shutil.rmtree(tmp_path / "val" / "n01")
    train, validation = load_images(DATASETS.get("imagenet").Config(root=tmp_path))
    assert validation.labels is not None
    assert validation.labels.tolist() == [1]
    assert validation.classes == train.classes
    before = train.fingerprint
    os.utime(tmp_path / "train" / "n01" / "n01_1.JPEG", (5, 5))
    assert load_images(DATASETS.get("imagenet").Config(root=tmp_path)).train.fingerprint != before


def test_an_archive_that_was_not_unpacked_to_the_end_is_noticed(tmp_path: Path, capsys: Any) -> None:
    write_imagenet(tmp_path)
    source("imagenet", root=tmp_path)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "train" / "n02")
    (tmp_path / "train" / "n02.tar").write_bytes(b"")
    source("imagenet", root=tmp_path)
    assert "holds 1 of 2 classes, and 1 .tar (such as n02.tar): was it unpacked to the end?" in capsys.readouterr().err


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def evil_mnist(root: Path) -> None:
    (root / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training", "test"):
        torch.save(Evil(), root / "MNIST" / "processed" / f"{name}.pt")


def evil_cifar10(root: Path, name: str) -> None:
    write_cifar10(root / "cifar-10-batches-py")
    (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({"data": Evil(), "labels": [], "label_names": []}))


class Addresses:
    """An array of objects whose addresses are 32 bytes: whoever looks at one crashes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, ((4,), np.dtype("O"), b"A" * 32)


class Objects:
    """The same by the way in which numpy itself reads arrays."""

    def __reduce__(self) -> tuple[Any, ...]:
        reconstruct, arguments, _ = np.zeros(0, np.uint8).__reduce__()
        return reconstruct, arguments, (1, (4,), np.dtype("V8"), False, b"A" * 32)


def evil_imagenet(root: Path) -> None:
    write_imagenet(root)
    torch.save(Evil(), root / "meta.bin")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mnist", evil_mnist),
        ("cifar10", lambda root: evil_cifar10(root, "data_batch_3")),
        ("cifar10", lambda root: evil_cifar10(root, "batches.meta")),
        ("imagenet", evil_imagenet),
    ],
)
def test_code_in_a_data_set_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match="damaged") as caught:
        source(name, root=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("evil", [Addresses(), Objects(), np.zeros(4, np.int64), np.array([None])])
@pytest.mark.parametrize("key", ["data", "labels"])
def test_cifar10_takes_nothing_but_bytes_for_pixels(tmp_path: Path, evil: Any, key: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    content = pickle.loads((folder / "data_batch_2").read_bytes())
    (folder / "data_batch_2").write_bytes(pickle.dumps(content | {key: evil}))
    with pytest.raises(UserError, match="missing or damaged"):
        source("cifar10", root=tmp_path)


def test_cifar10_is_read_as_it_was_published_with_pickles_of_python_2(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    images = write_cifar10(folder)
    for path in folder.iterdir():
        content = pickle.loads(path.read_bytes())
        old = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        path.write_bytes(old)
    assert torch.equal(source("cifar10", root=tmp_path).load(7), torch.from_numpy(images[7]))


@pytest.mark.parametrize(
    "head", [struct.pack(">IIII", 2051, 2**31 - 1, 2**15, 2**15), struct.pack(">I", 77), b"", b"\x1f\x8b"]
)
def test_a_header_that_claims_too_much_is_one_sentence(tmp_path: Path, head: bytes) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(head + b"abc")
    with pytest.raises(UserError, match="'mnist' is missing or damaged"):
        source("mnist", root=tmp_path)


def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    for content in (bytes(range(4)), bytes([1, 2, 3, 4, 200])):
        labels.write_bytes(struct.pack(">II", 2049, len(content)) + content)
        with pytest.raises(UserError, match="labels are not those of 5 images in 10 classes"):
            source("mnist", root=tmp_path)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        source("digits")
