"""Archives of pictures: they read as the folder that they were packed from, and what they may hide does no harm."""

import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.console import session
from rcg.core.errors import UserError
from rcg.data import archives, loading
from rcg.data.datasets.image_folder import ImageFolder, ImageFolderConfig
from rcg.data.images import load_images
from rcg.data.picture_source import in_order
from rcg.evaluation.samples import folder_images
from rcg.visual.documents import Document, render


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int = 0, kind: str = "png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pack(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write an archive of the kind that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def unpack(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def opened(root: Path, **settings: Any) -> ImageFolder:
    with session():  # each says its warnings
        return ImageFolder(ImageFolderConfig(root=root, **settings))


def some(names: list[str]) -> dict[str, bytes]:
    return {name: picture(seed) for seed, name in enumerate(names)}


MANY = some([f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)])
PACKED = {"stored": ("a.zip", zipfile.ZIP_STORED), "deflated": ("a.zip", zipfile.ZIP_DEFLATED), "tar": ("a.tar", 0)}


@pytest.mark.parametrize("kind", PACKED)
def test_an_archive_reads_as_the_folder_that_it_holds(tmp_path: Path, kind: str) -> None:
    name, method = PACKED[kind]
    packed = load_images(ImageFolderConfig(root=pack(tmp_path / name, MANY, method)))
    folder = load_images(ImageFolderConfig(root=unpack(tmp_path / "folder", MANY)))
    for one, other in zip(packed, folder, strict=True):
        assert one.classes == other.classes == ("cat", "dog")
        assert torch.equal(one.indices, other.indices)
        assert one.labels is not None
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(one.raw(place), other.raw(place)) for place in range(len(one)))


def test_dots_in_names_mean_the_parts_of_a_sample_in_tar_archives_alone(tmp_path: Path) -> None:
    contents = some(["trip.jpg.png", "trip.png", "trip.2021.png"])
    assert len(opened(pack(tmp_path / "a.zip", contents))) == 3
    assert len(opened(pack(tmp_path / "a.tar", contents))) == 1


@pytest.mark.parametrize("name", ["tmp.zip", "cache-2020.tar"])
def test_an_archive_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "shards").mkdir()
    pack(tmp_path / "shards" / name, MANY)
    assert len(opened(tmp_path / "shards")) == 20


def test_numbers_that_are_written_in_two_ways_are_two_classes_in_one_order() -> None:
    assert in_order(["10", "01", "1", "2"]) == in_order(["1", "2", "01", "10"]) == ("01", "1", "2", "10")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_folder_around_everything_and_what_systems_add_are_no_classes(tmp_path: Path, ending: str) -> None:
    contents = {f"./photos/2024/{name}": content for name, content in MANY.items()}
    contents |= {"__MACOSX/photos/._0.png": b"", "photos/2024/.thumbs/1.png": picture(), "photos/notes.txt": b""}
    source = opened(pack(tmp_path / f"a.{ending}", contents))
    assert (len(source), source.classes) == (20, ("cat", "dog"))


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_official_splits_lie_in_an_archive(tmp_path: Path, ending: str, capsys: Any) -> None:
    names = ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png", "val/dog/3.png", "more/4.png"]
    source = opened(pack(tmp_path / f"a.{ending}", some([f"set/{name}" for name in names])))
    validation = source.official_validation()
    assert validation is not None
    assert (source.classes, validation.classes) == (("cat", "dog"),) * 2
    assert source.labels is not None
    assert validation.labels is not None
    assert (source.labels.tolist(), validation.labels.tolist()) == ([0, 1, 1], [1])
    assert "splits train and val: left out more beside them" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("train.zip", "val.tar"), ("x-train-00.tar", "x-validation-00.tar")])
def test_official_splits_are_told_by_the_names_of_shards(tmp_path: Path, names: tuple[str, str]) -> None:
    for seed, name in enumerate(names):
        pack(tmp_path / "all" / name, {f"{label}/{seed}.png": picture(seed) for label in ("cat", "dog")})
    train, validation = load_images(ImageFolderConfig(root=tmp_path / "all"))
    assert (len(train), len(validation)) == (2, 2)
    assert train.classes == validation.classes == ("cat", "dog")


def test_shards_of_webdataset_have_the_labels_beside_the_pictures(tmp_path: Path, capsys: Any) -> None:
    for shard in range(2):
        contents = {}
        for number in range(6):
            sample = f"{number:04d}"
            contents |= {f"{sample}.jpg": picture(number, "jpeg"), f"{sample}.cls": str(2 + number * 4).encode()}
            contents |= {f"{sample}.seg.png": picture(), f"{sample}.json": b"{}"}
        pack(tmp_path / "wds" / f"part-{shard:05d}.tar", contents)
    source = opened(tmp_path / "wds")
    assert source.classes == ("2", "6", "10", "14", "18", "22")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert source.paths[0] == "part-00000/0000.jpg"
    assert len(set(source.paths)) == 12
    assert "12 pictures beside that of their sample (such as part-00000/0000.seg.png)" in capsys.readouterr().err


def test_a_shard_more_keeps_the_split_of_the_others(tmp_path: Path) -> None:
    def validation() -> set[str]:
        images = load_images(ImageFolderConfig(root=tmp_path / "all", validation=0.3)).validation
        return {images.source.key(index) for index in images.indices.tolist()}

    pack(tmp_path / "all" / "a-0.tar", MANY)
    before = validation()
    pack(tmp_path / "all" / "a-1.tar", MANY)
    after = validation()
    assert {key for key in after if key.startswith("a-0/")} == before
    assert len(after) > len(before)


def test_pictures_beside_archives_are_read_instead(tmp_path: Path, capsys: Any) -> None:
    unpack(tmp_path / "all", some(["1.png"]))
    pack(tmp_path / "all" / "more.zip", MANY)
    assert len(opened(tmp_path / "all")) == 1
    assert "passed over 1 .zip (such as more.zip)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_every_process_reads_by_index_what_one_has_listed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_images(ImageFolderConfig(root=pack(tmp_path / name, MANY), image_size=4)).train
    expected = [images[place]["image"] for place in range(len(images))]
    archives._read_indices.cache_clear()
    monkeypatch.setattr(archives, "_read_index", None)  # whoever lists the archive again fails
    copy = pickle.loads(pickle.dumps(images))
    assert all(torch.equal(copy[place]["image"], expected[place]) for place in range(len(images)))
    monkeypatch.setattr(loading, "default_workers", lambda dataset: 1)
    batches = list(loading.batches(images, range(len(images)), 4))
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), torch.stack(expected))


def test_a_tar_archive_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.tar", MANY | {"cat/0.cls": b"9"})
    first = opened(path)

    def scan(*_: Any) -> Any:
        raise AssertionError("the archive is scanned again")

    archives._read_indices.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(archives, "_tar_index", scan)
        again = opened(path)
        assert again.fingerprint == first.fingerprint
        assert torch.equal(again.load(5), first.load(5))
    os.utime(path, (1, 1))
    assert opened(path).fingerprint != first.fingerprint


def test_the_fingerprint_of_a_zip_archive_follows_contents_alone(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", MANY)
    first = opened(path).fingerprint
    os.utime(path, (1, 1))
    assert opened(path).fingerprint == first
    changed = MANY | {"cat/0.png": picture(77)}
    assert len(changed["cat/0.png"]) == len(MANY["cat/0.png"])
    assert opened(pack(path, changed)).fingerprint != first


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_damaged_pictures_in_archives_are_left_out_and_listed(tmp_path: Path, name: str, capsys: Any) -> None:
    path = pack(tmp_path / name, {**MANY, "dog/cut.png": picture()[:60], "dog/text.png": b"no picture"})
    assert len(opened(path)) == 20
    text = capsys.readouterr().err
    assert "left out 2 unreadable pictures" in text
    assert "dog/text.png (it is no picture)" in text


def test_an_evaluation_reads_archives_too(tmp_path: Path) -> None:
    pack(tmp_path / "all" / "a.zip", MANY)
    found = folder_images(tmp_path / "all", None)
    assert (len(found), found.size) == (20, 4)


# What archives may hide.


@pytest.mark.parametrize("ending", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "cat/../../outside.png", "C:\\outside.png"])
def test_paths_that_lead_outside_are_passed_over(tmp_path: Path, ending: str, name: str, capsys: Any) -> None:
    assert len(opened(pack(tmp_path / f"a.{ending}", MANY | {name: picture()}))) == 20
    (text,) = capsys.readouterr().err.splitlines()
    assert "passed over 1 entries whose paths lead outside of the archive" in text


def test_links_in_archives_are_passed_over(tmp_path: Path, capsys: Any) -> None:
    path = pack(tmp_path / "a.tar", MANY)
    with tarfile.open(path, "a") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"cat/link{number}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert len(opened(path)) == 20
    assert "passed over 3 links and special files (such as cat/link0.png)" in capsys.readouterr().err
    path = pack(tmp_path / "a.zip", MANY)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("cat/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert len(opened(path)) == 20
    assert "passed over 1 links and special files" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_names_with_html_are_escaped_and_those_that_would_steer_a_terminal_passed_over(
    tmp_path: Path, ending: str, capsys: Any
) -> None:
    names = ["<img src=x onerror=alert(1)>/<script>1.png", "dog/2.png", "dog/\x1b[2J3.png", "dog/\n4.png"]
    source = opened(pack(tmp_path / f"a.{ending}", some(names)))
    assert source.classes == ("<img src=x onerror=alert(1)>", "dog")
    (text,) = capsys.readouterr().err.splitlines()
    assert "2 names with control characters" in text
    assert "\x1b" not in text
    report = Document("classes", ["class", "file"], [[source.classes[0], source.paths[0]]])
    values = {"title": "a", "report": report, "folder": tmp_path, "experiment": ""}
    render("comparison.html", tmp_path / "page.html", **values)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x" not in page
    assert "<script>1" not in page


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = pack(tmp_path / "a.zip", MANY | {"dog/bomb.bmp": bytes(2**22)})
    monkeypatch.setattr(archives, "MOST_BYTES", 2**23)
    assert len(opened(path)) == 20
    assert re.search(r"bomb\.bmp \(\d{4} bytes would unpack to 4194304", capsys.readouterr().err)
    path = pack(tmp_path / "b.zip", MANY | {"dog/huge.bmp": bytes(2**23 + 1)}, zipfile.ZIP_STORED)
    assert len(opened(path)) == 20
    assert "huge.bmp (8388609 bytes would unpack to 8388609" in capsys.readouterr().err


def test_a_picture_that_is_larger_than_it_claims_is_damaged(tmp_path: Path, capsys: Any) -> None:
    path = pack(tmp_path / "a.zip", MANY | {"dog/bomb.bmp": bytes(2**22)})
    patch(path, b"dog/bomb.bmp", at=24, value=(99).to_bytes(4, "little"))  # the size in the list of members
    assert len(opened(path)) == 20
    assert "bomb.bmp (its checksum in the archive is another)" in capsys.readouterr().err


def patch(path: Path, name: bytes, at: int, value: bytes) -> None:
    """Change what the list of members says of `name`, `at` bytes from the start of its record, 46 before its name."""
    content = bytearray(path.read_bytes())
    start = content.rindex(name) - 46 + at
    content[start : start + len(value)] = value
    path.write_bytes(content)


def test_encrypted_and_strangely_packed_pictures_are_listed_with_the_way_out(tmp_path: Path, capsys: Any) -> None:
    path = pack(tmp_path / "a.zip", MANY | {"dog/secret.png": picture()})
    patch(path, b"dog/secret.png", at=8, value=b"\1\0")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dog/bz.png", picture(), zipfile.ZIP_BZIP2)
    assert len(opened(path)) == 20
    text = capsys.readouterr().err
    assert "dog/secret.png (it is encrypted: unpack the archive with its password)" in text
    assert "dog/bz.png (it is compressed by bzip2, but only deflate is read: pack the archive again)" in text
    path = pack(tmp_path / "b.zip", {"secret.png": picture()})
    patch(path, b"secret.png", at=8, value=b"\1\0")
    with pytest.raises(UserError, match=r"holds nothing but 1 unreadable picture, secret\.png \(it is encrypted"):
        opened(path)


def test_a_damaged_list_of_members_is_one_sentence(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", MANY)
    patch(path, b"dog/9.png", at=0, value=b"??")
    with pytest.raises(
        UserError, match=r"^archive .*a\.zip is damaged, or no \.zip archive.*central directory"
    ) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"archive .*b\.zip is damaged"):
        opened(tmp_path / "b.zip")


def test_a_tar_archive_that_was_cut_or_compressed_is_one_sentence(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", MANY)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match=r"archive .*a\.tar is damaged, or no \.tar archive .*unexpected end of data"):
        opened(path)
    with tarfile.open(tmp_path / "b.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"archive .*b\.tar is damaged, or no \.tar archive without compression"):
        opened(tmp_path / "b.tar")
    (tmp_path / "c.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file, but .*\.zip, \.tar, .*gunzip makes a \.tar file of it"):
        opened(tmp_path / "c.tar.gz")


def test_an_archive_that_shrank_since_it_was_listed_is_one_sentence(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar"):
        source = opened(pack(tmp_path / name, MANY, zipfile.ZIP_STORED))
        os.truncate(tmp_path / name, 100)
        with pytest.raises(UserError, match=rf"picture dog/9\.png in .*{name} cannot be read: "):
            source.load(19)


def test_an_archive_without_pictures_or_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"archive .*a\.zip \(data\.root\) holds no pictures .*it holds 1 \.txt"):
        opened(pack(tmp_path / "a.zip", {"notes.txt": b""}))
    with pytest.raises(UserError, match=r"there is no file .*b\.zip .*did you mean 'a\.zip'"):
        opened(tmp_path / "b.zip")
    with pytest.raises(UserError, match=r"data\.label chooses a column of data\.manifest, or of a table"):
        opened(tmp_path / "a.zip", label="cat")
