"""Folders of pictures: file formats, labels, damaged files, and messages."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from rcg.core.errors import UserError
from rcg.data.datasets import image_folder
from rcg.data.datasets.image_folder import ImageFolder, ImageFolderConfig, decode


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def paint(path: Path, color: Any = (200, 30, 40), mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def folder(root: Path) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(root=root))


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 1
    return image


def keyed_rgb() -> Image.Image:
    image = Image.new("RGB", (6, 4), (1, 2, 3))
    image.info["transparency"] = (1, 2, 3)
    return image


KINDS: dict[str, tuple[str, Callable[[], Image.Image], tuple[int, int, int]]] = {
    "color": ("a.png", lambda: Image.new("RGB", (6, 4), (1, 2, 3)), (1, 2, 3)),
    "color with a transparent color": ("a.png", keyed_rgb, (255, 255, 255)),
    "gray": ("a.png", lambda: Image.new("L", (6, 4), 77), (77, 77, 77)),
    "black and white": ("a.png", lambda: Image.new("1", (6, 4), 1), (255, 255, 255)),
    "palette": ("a.gif", lambda: palette(False), (10, 20, 30)),
    "palette with transparency": ("a.png", lambda: palette(True), (255, 255, 255)),
    "RGBA, opaque": ("a.png", lambda: Image.new("RGBA", (6, 4), (1, 2, 3, 255)), (1, 2, 3)),
    "RGBA, half transparent": ("a.webp", lambda: Image.new("RGBA", (6, 4), (0, 0, 0, 128)), (127, 127, 127)),
    "gray with alpha": ("a.png", lambda: Image.new("LA", (6, 4), (0, 0)), (255, 255, 255)),
    "CMYK": ("a.tif", lambda: Image.new("CMYK", (6, 4), (255, 0, 0, 0)), (0, 255, 255)),
    "CMYK JPEG": ("a.JPG", lambda: Image.new("CMYK", (6, 4), (0, 0, 0, 255)), (0, 0, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_rgb_bytes(root: Path, kind: str) -> None:
    name, make, color = KINDS[kind]
    image = make()
    image.save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    pixels = folder(root).load(0)
    assert pixels.shape == (3, 4, 6)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor(color, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "uint16"), ("a.tif", "uint16"), ("a.pgm", "uint16"), ("b.tif", "int32")]
)
def test_sixteen_bits_of_gray_keep_their_precision(root: Path, name: str, dtype: str) -> None:
    levels = np.array([[0, 1, 300], [40000, 65534, 65535]])
    Image.fromarray(levels.astype(dtype)).save(root / name)
    pixels = folder(root).load(0)
    assert pixels.dtype == torch.float32
    expected = torch.tensor(levels / 65535, dtype=torch.float32).expand(3, -1, -1)
    torch.testing.assert_close(pixels, expected, atol=1e-7, rtol=0)


def test_a_camera_held_sideways_does_not_turn_the_picture(root: Path) -> None:
    image = Image.new("RGB", (20, 10), "blue")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a clockwise quarter turn: the left side comes to the top
    image.save(root / "a.png", exif=exif)
    pixels = folder(root).load(0)
    assert pixels.shape == (3, 20, 10)
    assert pixels[:, 0, 5].tolist() == [255, 0, 0]
    assert pixels[:, -1, 5].tolist() == [0, 0, 255]


def test_pictures_are_found_at_any_depth_in_the_order_of_their_paths(root: Path) -> None:
    for red, name in enumerate(["b.png", "a/z/deep.png", "a/1.PNG"]):
        paint(root / name, (red, 0, 0))
    (root / "notes.txt").write_text("not a picture")
    paint(root / ".thumbnails" / "hidden.png")
    paint(root / "._b.png")
    source = folder(root)
    assert [source.load(index)[0, 0, 0].item() for index in range(len(source))] == [2, 1, 0]


def test_a_link_to_a_folder_above_does_not_trap_the_search(root: Path) -> None:
    paint(root / "a" / "1.png")
    (root / "a" / "loop").symlink_to(root)
    assert len(folder(root)) == 1


def test_linked_folders_are_searched(root: Path, tmp_path: Path) -> None:
    paint(tmp_path / "elsewhere" / "1.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(folder(root)) == 1


def test_the_first_level_of_folders_gives_the_labels(root: Path) -> None:
    for name in ("dog/1.png", "cat/old/2.png", "cat/3.png"):
        paint(root / name)
    source = folder(root)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == torch.int64


@pytest.mark.parametrize("names", [("dog/1.png", "cat/2.png", "3.png"), ("dog/1.png", "dog/old/2.png"), ("1.png",)])
def test_loose_pictures_or_a_single_folder_have_no_labels(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        paint(root / name)
    source = folder(root)
    assert source.labels is None
    assert source.classes == ()


def damaged(root: Path) -> None:
    """Write one good picture, an empty file, a truncated JPEG and a text file in disguise."""
    paint(root / "good.png")
    (root / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "cut.jpg")
    os.truncate(root / "cut.jpg", (root / "cut.jpg").stat().st_size // 2)
    (root / "text.gif").write_text("I am no picture")


def test_damaged_files_are_named_in_one_warning_and_left_out(root: Path) -> None:
    damaged(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = folder(root)
    assert len(source) == 1
    assert source.load(0).shape == (3, 4, 6)
    (warning,) = caught
    text = str(warning.message)
    assert "left out 3 unreadable pictures" in text
    assert all(name in text for name in ("empty.png", "cut.jpg", "text.gif"))
    assert "good.png" not in text


def test_the_warning_names_only_the_first_of_many_files(root: Path) -> None:
    paint(root / "good.png")
    for number in range(9):
        (root / f"{number}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"9 unreadable pictures, among them 0\.png .*4\.png") as caught:
        folder(root)
    assert "5.png" not in str(caught[0].message)


def test_a_floating_point_picture_is_left_out_with_its_reason(root: Path) -> None:
    paint(root / "good.png")
    paint(root / "float.tif", 0.5, "F")
    with pytest.warns(UserWarning, match=r"float\.tif \(ValueError: .* which value is white\)"):
        folder(root)


def test_good_folders_cause_no_warning(root: Path) -> None:
    paint(root / "good.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder(root)) == 1


class CheckedAgainError(Exception):
    """The files are being decoded again."""


@pytest.fixture
def recheck(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call a second check raises `CheckedAgainError`."""

    def check_again(*_: Any) -> dict[str, str]:
        raise CheckedAgainError

    return lambda: monkeypatch.setattr(image_folder, "_decode_all", check_again)


def test_a_folder_is_checked_once_and_the_warning_stays(root: Path, recheck: Callable[[], None]) -> None:
    damaged(root)
    with pytest.warns(UserWarning, match="3 unreadable") as first:
        folder(root)
    recheck()
    with pytest.warns(UserWarning, match="3 unreadable") as second:
        assert len(folder(root)) == 1
    assert str(first[0].message) == str(second[0].message)


def test_any_change_of_the_files_calls_for_a_new_check(root: Path, recheck: Callable[[], None]) -> None:
    picture = paint(root / "good.png")
    folder(root)
    recheck()
    folder(root)
    os.utime(picture, (1, 1))
    with pytest.raises(CheckedAgainError):
        folder(root)


def test_a_damaged_record_of_the_check_is_replaced(root: Path, cache: Path, recheck: Callable[[], None]) -> None:
    paint(root / "good.png")
    folder(root)
    (record,) = (cache / "rcg").iterdir()
    for text in ('{"good.p', '["good.png"]'):
        record.write_text(text)
        assert len(folder(root)) == 1
    recheck()
    assert len(folder(root)) == 1
    assert list((cache / "rcg").iterdir()) == [record]


def test_a_cache_that_cannot_be_written_does_no_harm(root: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    paint(root / "good.png")
    assert len(folder(root)) == 1


def test_the_fingerprint_follows_names_and_sizes_but_not_the_place(root: Path, tmp_path: Path) -> None:
    prints = []
    for place, name, size in (("x", "a.png", 6), ("y", "a.png", 6), ("z", "b.png", 6), ("w", "a.png", 600)):
        paint(tmp_path / place / name, size=(size, 4))
        prints.append(folder(tmp_path / place).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_a_missing_folder_is_answered_with_the_nearest_one(root: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*/picturse; did you mean 'pictures'"):
        folder(root.parent / "picturse")


def test_a_missing_folder_above_is_named_instead(root: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*/picturse \(data.root is .*/train\); did you mean 'pictures'"):
        folder(root.parent / "picturse" / "flowers" / "train")


def test_a_file_is_not_a_folder(root: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png \(data.root\) is a file"):
        folder(paint(root / "a.png"))


def test_a_folder_without_pictures_is_named(root: Path) -> None:
    (root / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"pictures \(data.root\) holds no pictures"):
        folder(root)


def test_a_folder_of_damaged_pictures_is_named(root: Path) -> None:
    (root / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"pictures \(data.root\) holds nothing but 1 unreadable picture, empty\.png"):
        folder(root)


def test_decode_raises_for_a_damaged_file(root: Path) -> None:
    damaged(root)
    with pytest.raises(OSError, match="truncated"):
        decode(root / "cut.jpg")


def test_a_misspelt_key_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"unknown key; did you mean 'root'"):
        ImageFolderConfig.model_validate({"rot": "x"})
