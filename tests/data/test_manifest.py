"""Manifests: a CSV file that gives each picture its class."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rcg.core.console import session
from rcg.core.errors import UserError
from rcg.data.datasets.image_folder import ImageFolder, ImageFolderConfig


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(4):
        path = tmp_path / "photos" / f"all/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(path)
    return tmp_path / "photos"


def opened(root: Path, text: str, **settings: Any) -> ImageFolder:
    manifest = root.parent / "labels.csv"
    manifest.write_text(text, encoding="utf-8")
    with session():
        return ImageFolder(ImageFolderConfig(root=root, manifest=manifest, **settings))


LABELS = "\ufeffpath,label\nall/3.png,dog\nall/1.png,cat\nall/0.png,dog\nall/2.png,cat\n"


def test_the_rows_give_the_labels(root: Path) -> None:
    source = opened(root, LABELS)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0, 1]
    assert opened(root, LABELS.replace("3.png,dog", "3.png,cat")).fingerprint != source.fingerprint


def test_the_paths_may_lie_in_an_archive(root: Path) -> None:
    with zipfile.ZipFile(root.parent / "a.zip", "w") as archive:
        for path in (root / "all").iterdir():
            archive.write(path, f"all/{path.name}")
    source = opened(root.parent / "a.zip", LABELS)
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0, 1]


def test_one_of_several_attributes_is_the_label(root: Path) -> None:
    text = "image,Smiling,Age\n" + "".join(f"all/{number}.png,{number % 2},{number + 8}\n" for number in range(4))
    with pytest.raises(UserError, match=r"labels\.csv has several columns of labels, Smiling, Age: choose one with"):
        opened(root, text)
    with pytest.raises(UserError, match=r"labels\.csv has no column 'age' \(data\.label\); did you mean 'Age'"):
        opened(root, text, label="age")
    assert opened(root, text, label="Smiling").classes == ("0", "1")
    assert opened(root, text, label="Age").classes == ("8", "9", "10", "11")


def test_a_manifest_names_the_pictures_of_both_official_splits(root: Path) -> None:
    (root / "all").rename(root / "train")
    (root / "val").mkdir()
    (root / "train/3.png").rename(root / "val/3.png")
    rows = "path,label\ntrain/0.png,a\ntrain/1.png,b\ntrain/2.png,a\nval/3.png,b\n"
    source = opened(root, rows)
    validation = source.official_validation()
    assert validation is not None
    assert validation.labels is not None
    assert source.labels is not None
    assert (source.labels.tolist(), validation.labels.tolist()) == ([0, 1, 0], [1])
    with pytest.raises(UserError, match=r"labels\.csv has no row for val/3\.png"):
        opened(root, rows.replace("val/3.png,b\n", ""))


WRONG = {
    "missing": (LABELS.replace("all/2.png,cat\n", ""), r"has no row for all/2\.png: each picture needs one"),
    "extra": (LABELS + "all/9.png,cat\n", r"has rows for all/9\.png, but there are no such pictures"),
    "twice": (LABELS + "all/2.png,dog\n", r"has two rows for all/2\.png"),
    "empty": (LABELS.replace("1.png,cat", "1.png,"), r"gives no label for all/1\.png"),
    "short": (LABELS.replace("1.png,cat", "1.png"), r"gives no label for all/1\.png"),
    "one column": ("path\nall/1.png\n", r"has no column of labels beside that of paths: path,label is expected"),
    "nothing": ("", r"has no column of labels beside that of paths: path,label is expected"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_manifest_that_does_not_fit_is_one_sentence(root: Path, kind: str) -> None:
    text, why = WRONG[kind]
    with pytest.raises(UserError, match=rf"^(manifest )?\S*labels\.csv {why}$"):
        opened(root, text)


def test_a_manifest_that_cannot_be_read_is_one_sentence(root: Path) -> None:
    with pytest.raises(UserError, match=r"there is no manifest .*labls\.csv \(data\.manifest\); "):
        ImageFolder(ImageFolderConfig(root=root, manifest=root.parent / "labls.csv"))
    (root.parent / "binary.csv").write_bytes(b"\xff\xfe\0\0")
    with pytest.raises(UserError, match=r"manifest .*binary\.csv \(data\.manifest\) cannot be read: "):
        ImageFolder(ImageFolderConfig(root=root, manifest=root.parent / "binary.csv"))
