"""Tables of pictures: Parquet files of the hub's layout, and what `save_to_disk` of datasets writes."""

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.console import session
from rcg.core.errors import UserError
from rcg.data import tables
from rcg.data.datasets.image_folder import ImageFolder, ImageFolderConfig
from rcg.data.images import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def arrow() -> Any:
    pytest.importorskip("pyarrow.parquet")
    import pyarrow

    return pyarrow


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "png")
    return file.getvalue()


IMAGE, CLASS = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["dog", "ape", "cat"]}


def write(path: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> Path:
    """Write a table as datasets does, with what it notes about the columns."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if features is not None:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
    return path


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": encoded(first + number), "path": f"{number}.png"} for number in range(count)]


def opened(root: Path, **settings: Any) -> ImageFolder:
    with session():
        return ImageFolder(ImageFolderConfig(root=root, **settings))


NAMES = {"parquet": "data/{}-00000-of-00001.parquet", "save_to_disk": "{}/data-00000-of-00001.arrow"}


@pytest.mark.parametrize("layout", NAMES)
def test_the_splits_and_classes_of_a_data_set_of_the_hub_are_its_own(tmp_path: Path, layout: str, arrow: Any) -> None:
    features = {"img": IMAGE, "label": CLASS, "caption": {"_type": "Value"}}
    for split, count, first in (("train", 7, 0), ("test", 4, 50)):
        columns = {
            "img": rows(count, first),
            "label": [number % 3 for number in range(count)],
            "caption": ["-"] * count,
        }
        write(tmp_path / "set" / NAMES[layout].format(split), columns, features)
    (tmp_path / "set" / "README.md").write_text("")
    source = opened(tmp_path / "set")
    validation = source.official_validation()
    assert validation is not None
    assert source.classes == validation.classes == ("dog", "ape", "cat")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for images, first in ((source, 0), (validation, 50)):
        for index in range(len(images)):
            assert np.array_equal(images.load(index).permute(1, 2, 0).numpy(), pixels(first + index))
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.load(6), source.load(6))


def test_a_parquet_file_is_copied_once(tmp_path: Path, arrow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": rows(5), "label": ["b", "a", "b", "a", "a"]})
    first = opened(path)
    assert first.classes == ("a", "b")
    monkeypatch.setattr(tables, "_copy", None)
    again = opened(path)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.load(3), first.load(3))


def test_numbers_and_bytes_without_notes_are_labels_and_pictures(tmp_path: Path, arrow: Any) -> None:
    columns = {"picture": [encoded(number) for number in range(4)], "label": [10, 9, 10, 9], "id": [1, 2, 3, 4]}
    source = opened(write(tmp_path / "a.arrow", columns))
    assert source.classes == ("9", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 0]


def test_of_several_columns_of_labels_one_is_chosen(tmp_path: Path, arrow: Any) -> None:
    features = {"image": IMAGE, "fine": CLASS, "coarse": CLASS}
    columns = {"image": rows(4), "fine": [0, 1, 2, 0], "coarse": [0, 0, 1, 1], "id": [1, 2, 3, 4]}
    path = write(tmp_path / "a.arrow", columns, features)
    with pytest.raises(UserError, match=r"several columns of labels, fine, coarse: choose one with data\.label"):
        opened(path)
    with pytest.raises(UserError, match=r"no column 'corse' \(data\.label\); did you mean 'coarse'"):
        opened(path, label="corse")
    prints = set()
    for label, expected in (("fine", [0, 1, 2, 0]), ("coarse", [0, 0, 1, 1]), ("id", [0, 1, 2, 3])):
        source = opened(path, label=label)
        assert source.labels is not None
        assert source.labels.tolist() == expected
        prints.add(source.fingerprint)
    assert len(prints) == 3


def test_rows_that_hold_no_picture_or_a_damaged_one_are_left_out(tmp_path: Path, arrow: Any, capsys: Any) -> None:
    pictures = [*rows(4), {"bytes": None, "path": "/elsewhere/5.png"}, {"bytes": b"text", "path": "6.png"}]
    source = opened(write(tmp_path / "a.arrow", {"image": pictures, "label": [0, 1, -1, 0, 1, 1]}))
    assert len(source) == 4
    assert source.labels is None
    text = capsys.readouterr().err
    assert "passed over 1 rows without a picture (such as 4)" in text
    assert "left out 1 unreadable picture, 5 (it is no picture)" in text
    assert "classes are not used, because 2 has none" in text


def test_labels_beyond_the_classes_and_tables_without_pictures_are_refused(tmp_path: Path, arrow: Any) -> None:
    features = {"image": IMAGE, "label": CLASS}
    with pytest.raises(UserError, match=r"a\.arrow names 3 classes, but its column label holds 3"):
        opened(write(tmp_path / "a.arrow", {"image": rows(4), "label": [0, 1, 2, 3]}, features))
    with pytest.raises(UserError, match=r"b\.parquet holds only the columns text, but one column of encoded pictures"):
        opened(write(tmp_path / "b.parquet", {"text": ["a", "b"]}))
    with pytest.raises(UserError, match=r"c\.arrow holds the columns left, right, but one column of encoded pictures"):
        opened(write(tmp_path / "c.arrow", {"left": [b"a"], "right": [b"b"]}))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_one_sentence(tmp_path: Path, arrow: Any, name: str) -> None:
    (tmp_path / name).write_bytes(b"no table at all")
    with pytest.raises(UserError, match=rf"^table .*{name} is damaged, or ") as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_that_unpacks_beyond_reason_is_refused(
    tmp_path: Path, arrow: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(tables, "SMALL", 2**10)
    path = write(tmp_path / "a.parquet", {"image": [bytes(2**18)] * 16})
    monkeypatch.setattr(tables, "MOST_RATIO", 2)
    with pytest.raises(UserError, match=r"table .*a\.parquet of \d+ bytes holds more than \d+, which no pictures do"):
        opened(path)
    assert not list((cache / "rcg").glob("*.arrow"))


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=rf"table .*{name} is read by the package pyarrow: pip install pyarrow"):
            opened(tmp_path / name)


def test_tables_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"holds tables, whose rows a manifest cannot name: leave data\.manifest out"):
        opened(tmp_path, manifest=tmp_path / "labels.csv")
    (tmp_path / "b.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds tables such as a\.parquet and archives such as b\.zip: name one"):
        load_images(ImageFolderConfig(root=tmp_path))
