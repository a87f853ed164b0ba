"""Folders of pictures: labels, splits, what is left out, fingerprints, and messages."""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from rcg.core.console import session
from rcg.core.errors import UserError
from rcg.data import picture_check
from rcg.data.datasets.image_folder import ImageFolder, ImageFolderConfig
from rcg.data.images import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def save_picture(path: Path, color: Any = (200, 30, 40), mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def folder(root: Path) -> ImageFolder:
    with session():  # each says its warnings
        return ImageFolder(ImageFolderConfig(root=root))


def test_pictures_are_found_at_any_depth_in_the_order_of_their_paths(root: Path) -> None:
    for red, name in enumerate(["b.png", "a/z/deep.png", "a/1.PNG"]):
        save_picture(root / name, (red, 0, 0))
    (root / "notes.txt").write_text("not a picture")
    save_picture(root / ".thumbnails" / "hidden.png")
    save_picture(root / "._b.png")
    source = folder(root)
    assert [source.load(index)[0, 0, 0].item() for index in range(len(source))] == [2, 1, 0]


def test_a_link_to_a_folder_above_does_not_trap_the_search(root: Path) -> None:
    save_picture(root / "a" / "1.png")
    (root / "a" / "loop").symlink_to(root)
    assert len(folder(root)) == 1


def test_linked_folders_are_searched(root: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "elsewhere" / "1.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(folder(root)) == 1


def test_the_first_level_of_folders_gives_the_labels(root: Path) -> None:
    for name in ("dog/1.png", "cat/old/2.png", "cat/3.png"):
        save_picture(root / name)
    source = folder(root)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == torch.int64


@pytest.mark.parametrize("names", [("dog/1.png", "cat/2.png", "3.png"), ("dog/1.png", "dog/old/2.png"), ("1.png",)])
def test_loose_pictures_or_a_single_folder_have_no_labels(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save_picture(root / name)
    source = folder(root)
    assert source.labels is None
    assert source.classes == ()


def damaged(root: Path) -> None:
    """Write one good picture, an empty file, a truncated JPEG and a text file in disguise."""
    save_picture(root / "good.png")
    (root / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "cut.jpg")
    os.truncate(root / "cut.jpg", (root / "cut.jpg").stat().st_size // 2)
    (root / "text.gif").write_text("I am no picture")


def test_damaged_files_are_named_in_one_warning_and_left_out(root: Path, capsys: Any) -> None:
    damaged(root)
    source = folder(root)
    assert len(source) == 1
    assert source.load(0).shape == (3, 4, 6)
    (text,) = capsys.readouterr().err.splitlines()
    assert "left out 3 unreadable pictures" in text
    assert all(name in text for name in ("empty.png", "cut.jpg", "text.gif"))
    assert "good.png" not in text


def test_the_warning_names_only_the_first_of_many_files(root: Path, capsys: Any) -> None:
    save_picture(root / "good.png")
    for number in range(9):
        (root / f"{number}.png").write_bytes(b"")
    folder(root)
    text = capsys.readouterr().err
    assert re.search(r"9 unreadable pictures, among them 0\.png .*4\.png", text)
    assert "5.png" not in text


def test_good_folders_cause_no_warning(root: Path, capsys: Any) -> None:
    save_picture(root / "good.png")
    (root / "captions.txt").write_text("flowers", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder(root)) == 1
    assert capsys.readouterr().err == ""


class CheckedAgainError(Exception):
    """The files are being decoded again."""


@pytest.fixture
def recheck(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call a second check raises `CheckedAgainError`."""

    def check_again(*_: Any) -> dict[str, str]:
        raise CheckedAgainError

    return lambda: monkeypatch.setattr(picture_check, "decode_all", check_again)


def test_a_folder_is_checked_once_and_the_warning_stays(root: Path, recheck: Callable[[], None], capsys: Any) -> None:
    damaged(root)
    folder(root)
    first = capsys.readouterr().err
    recheck()
    assert len(folder(root)) == 1
    assert "3 unreadable" in first
    assert capsys.readouterr().err == first


def test_any_change_of_the_files_calls_for_a_new_check(root: Path, recheck: Callable[[], None]) -> None:
    picture = save_picture(root / "good.png")
    folder(root)
    recheck()
    folder(root)
    os.utime(picture, (1, 1))
    with pytest.raises(CheckedAgainError):
        folder(root)


def test_a_damaged_record_of_the_check_is_replaced(root: Path, cache: Path, recheck: Callable[[], None]) -> None:
    save_picture(root / "good.png")
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
    save_picture(root / "good.png")
    assert len(folder(root)) == 1


def test_the_fingerprint_follows_names_sizes_times_and_classes(root: Path, tmp_path: Path) -> None:
    prints = []
    for place, name, size, time in (
        ("x", "a.png", 6, 1),
        ("y", "a.png", 6, 1),
        ("z", "b.png", 6, 1),
        ("w", "a.png", 600, 1),
        ("v", "a.png", 6, 2),
    ):
        os.utime(save_picture(tmp_path / place / name, size=(size, 4)), (time, time))
        prints.append(folder(tmp_path / place).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


@pytest.mark.parametrize("ending", ["bmp", "png", "ppm"])
def test_a_picture_that_is_replaced_by_one_of_the_same_size_changes_the_fingerprint(root: Path, ending: str) -> None:
    picture = save_picture(root / f"a.{ending}", (1, 2, 3))
    before = folder(root).fingerprint, picture.stat().st_size
    save_picture(picture, (3, 2, 1))
    assert picture.stat().st_size == before[1]
    assert folder(root).fingerprint != before[0]


def test_the_fingerprint_is_the_same_by_another_path(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        save_picture(root / name)
    (tmp_path / "link").symlink_to(root)
    shutil.copytree(root, tmp_path / "copy")  # keeps times
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [
        root,
        tmp_path / "link",
        tmp_path / "copy",
        Path(root.name),
        Path("~") / root.name,
        Path("copy/../pictures"),
    ]
    assert len({folder(place).fingerprint for place in places}) == 1


def test_a_missing_folder_is_answered_with_the_nearest_one(root: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*/picturse; did you mean 'pictures'"):
        folder(root.parent / "picturse")


def test_a_missing_folder_above_is_named_instead(root: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*/picturse \(data.root is .*/train\); did you mean 'pictures'"):
        folder(root.parent / "picturse" / "flowers" / "train")


def test_a_file_is_not_a_folder(root: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png \(data.root\) is a file"):
        folder(save_picture(root / "a.png"))


def test_a_folder_without_pictures_is_named(root: Path) -> None:
    (root / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"pictures \(data.root\) holds no pictures"):
        folder(root)


def test_a_folder_of_damaged_pictures_is_named(root: Path) -> None:
    (root / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"pictures \(data.root\) holds nothing but 1 unreadable picture, empty\.png"):
        folder(root)


def test_the_time_of_a_picture_is_part_of_what_images_and_caches_are_known_by(root: Path) -> None:
    for number in range(4):
        save_picture(root / f"{number}.bmp", (number, 0, 0))
    before = load_images(ImageFolderConfig(root=root))
    for number in range(4):
        save_picture(root / f"{number}.bmp", (0, number, 9))
    after = load_images(ImageFolderConfig(root=root))
    assert before.train.fingerprint != after.train.fingerprint
    assert before.validation.fingerprint != after.validation.fingerprint


# Links.


def test_folders_that_link_to_each_other_are_read_once_under_their_own_names(root: Path) -> None:
    names = "abc"
    for name in names:
        save_picture(root / name / "1.png")
    for name in names:
        for other in set(names) - {name}:
            (root / name / f"to_{other}").symlink_to(root / other)
    source = folder(root)
    assert source.paths == ["a/1.png", "b/1.png", "c/1.png"]
    assert source.classes == ("a", "b", "c")


def test_a_folder_that_two_links_lead_to_is_read_once(root: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "elsewhere" / "1.png")
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    assert folder(root).paths == ["a/1.png"]


def test_a_link_to_a_folder_above_the_root_does_not_search_that(root: Path, tmp_path: Path) -> None:
    save_picture(root / "1.png")
    save_picture(tmp_path / "other" / "2.png")
    (root / "up").symlink_to(tmp_path)
    assert len(folder(root)) == 1


def test_pictures_that_a_link_leads_to_from_both_splits_are_trained_on_alone(root: Path) -> None:
    save_picture(root / "train" / "1.png")
    save_picture(root / "val" / "2.png")
    (root / "val" / "same").symlink_to(root / "train")
    train, validation = load_images(ImageFolderConfig(root=root))
    assert (len(train), len(validation)) == (1, 1)


# What is left out.


def test_what_is_passed_over_is_counted_by_kind_in_one_warning(root: Path, capsys: Any) -> None:
    save_picture(root / "good.png")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "b.jxl", "more.zip", "scan", ".hidden", "notes.txt"):
        (root / name).write_bytes(b"")
    for number in range(3):
        (root / f"{number}.png").symlink_to("/annex/gone.png")
    assert len(folder(root)) == 1
    (text,) = capsys.readouterr().err.splitlines()
    for part in (
        "3 links that lead nowhere (such as ",
        "2 .heic, which pip install pillow-heif makes readable",
        "1 .jxl, which pip install pillow-jxl-plugin makes readable",
        "1 .zip (such as more.zip)",
        "1 without an ending (such as scan)",
    ):
        assert part in text
    assert "hidden" not in text
    assert "notes" not in text


def test_a_folder_without_pictures_is_answered_with_what_it_holds(root: Path) -> None:
    (root / "a.HEIC").write_bytes(b"")
    (root / "a.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no pictures .*it holds 1 \.heic.*pillow-heif.*1 \.txt"):
        folder(root)


def test_a_folder_that_may_not_be_read_is_counted(root: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(root / "good.png")
    (root / "secret").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(folder(root)) == 1
    assert "1 folders that cannot be read (such as secret)" in capsys.readouterr().err


def test_a_root_that_may_not_be_read_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"folder .*pictures \(data\.root\) cannot be read: Permission denied"):
        folder(root)


def test_of_many_kinds_the_most_frequent_are_listed(root: Path, capsys: Any) -> None:
    save_picture(root / "good.png")
    for number in range(12):
        (root / f"a.kind{number:02d}").write_bytes(b"")
    folder(root)
    text = capsys.readouterr().err
    assert text.count("such as") == 8
    assert "4 others" in text


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "lost+found", ".thumbnails"])
def test_folders_that_systems_keep_for_themselves_are_no_classes(root: Path, name: str, capsys: Any) -> None:
    for path in (f"{name}/0.png", "cat/1.png", "dog/2.png"):
        save_picture(root / path)
    source = folder(root)
    assert (len(source), source.classes) == (2, ("cat", "dog"))
    assert capsys.readouterr().err == ""


def test_the_picture_that_keeps_folders_from_being_classes_is_named(root: Path, capsys: Any) -> None:
    for name in ("cat/1.png", "dog/2.png", "stray.png"):
        save_picture(root / name)
    assert folder(root).labels is None
    (text,) = capsys.readouterr().err.splitlines()
    assert "its 2 folders are no classes, because stray.png lies beside them" in text


def test_dark_pictures_of_sixteen_bits_cause_a_warning(root: Path, capsys: Any) -> None:
    ramp = np.tile(np.linspace(0, 1, 40), (24, 1))
    Image.fromarray((ramp * 4095).astype("uint16")).save(root / "12.tif")
    for _ in range(2):  # also where the check was recorded
        folder(root)
        assert "no picture with 16 bits is brighter than 4095 of 65535" in capsys.readouterr().err
    Image.fromarray((ramp * 65535).astype("uint16")).save(root / "16.tif")
    folder(root)
    assert capsys.readouterr().err == ""


def test_an_error_of_the_disk_is_not_recorded_as_a_damaged_picture(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_picture(root / "a.png")
    save_picture(root / "b.png")
    opened = Image.open

    def refuse(path: Any, *rest: Any) -> Any:
        if Path(path).name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", refuse)
        assert len(folder(root)) == 1
    assert "a.png (Permission denied)" in capsys.readouterr().err
    assert len(folder(root)) == 2


def test_an_evaluation_refuses_unreadable_pictures_and_knows_no_splits(root: Path) -> None:
    for name in ("train/1.png", "val/2.png"):
        save_picture(root / name)
    assert len(ImageFolder(ImageFolderConfig(root=root), whole=True)) == 2
    (root / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 unreadable picture, 3\.png .*an evaluation counts every picture"):
        ImageFolder(ImageFolderConfig(root=root), whole=True)


# Official splits.


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("Train", "validation"), ("train", "valid")])
def test_train_and_val_at_the_top_are_the_official_splits(root: Path, names: tuple[str, str], capsys: Any) -> None:
    for split in names:
        for number in range(3):
            save_picture(root / split / "cat" / f"{number}.png")
    for name in (f"{names[0]}/dog/4.png", f"{names[1]}/dog/5.png"):
        save_picture(root / name)
    train, validation = load_images(ImageFolderConfig(root=root, image_size=4))
    assert (len(train), len(validation)) == (4, 4)
    assert train.classes == validation.classes == ("cat", "dog")
    assert validation.labels is not None
    assert validation.labels.bincount().tolist() == [3, 1]
    assert validation[0]["image"].shape == (3, 4, 4)
    assert train.fingerprint != validation.fingerprint
    source = ImageFolder(ImageFolderConfig(root=root, image_size=4))
    assert [len(source.official_validation() or ()) for _ in range(2)] == [4, 4]
    assert capsys.readouterr().err == ""


def test_a_share_splits_the_official_training_images(root: Path) -> None:
    for number in range(4):
        save_picture(root / "train" / f"{number}.png")
    save_picture(root / "val" / "5.png")
    train, validation = load_images(ImageFolderConfig(root=root, validation=0.25))
    assert len(train) + len(validation) == 4


def test_what_lies_beside_the_official_splits_is_named(root: Path, capsys: Any) -> None:
    for name in ("train/1.png", "val/2.png", "test/3.png", "stray.png"):
        save_picture(root / name)
    assert len(folder(root)) == 1
    assert "splits train and val: left out stray.png, test beside them" in capsys.readouterr().err


def test_a_class_that_is_not_trained_on_is_refused_in_validation(root: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dig/1.png"):
        save_picture(root / name)
    with pytest.raises(UserError, match=r"val/dig/1\.png is of no class .*did you mean 'dog'"):
        load_images(ImageFolderConfig(root=root))


@pytest.mark.parametrize("names", [("car", "train"), ("test", "val")])
def test_a_split_without_its_counterpart_is_a_class_with_a_warning(
    root: Path, names: tuple[str, str], capsys: Any
) -> None:
    for name in names:
        save_picture(root / name / "1.png")
    assert folder(root).classes == names
    assert "are taken for classes; official splits are train beside val or" in capsys.readouterr().err


# Messages.


@pytest.mark.parametrize("place", ["~nobody-of-this-name/x", "x\0y"])
def test_an_impossible_path_is_one_sentence(place: str) -> None:
    with pytest.raises(UserError, match=r"^(folder ~nobody.*data\.root|there is no folder)"):
        folder(Path(place))


def test_a_misspelt_key_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"unknown key; did you mean 'root'"):
        ImageFolderConfig.model_validate({"rot": "x"})
