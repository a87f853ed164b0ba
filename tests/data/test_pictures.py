"""Pictures of every kind, and reads that fail."""

import errno
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.config import DataConfig, TrainConfig
from rcg.core.errors import UserError
from rcg.data import loading, pictures
from rcg.data.images import Images
from rcg.data.picture_folder import PictureFolder, find_pictures
from rcg.data.picture_source import File, PictureFiles
from rcg.data.pictures import read_picture
from rcg.evaluation.inpainting_panel import read_image
from tests.toy import write_bomb


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 1
    return image


def keyed(mode: str, color: Any) -> Image.Image:
    image = Image.new(mode, (6, 4), color)
    image.info["transparency"] = color
    return image


def new(mode: str, color: Any) -> Callable[[], Image.Image]:
    return lambda: Image.new(mode, (6, 4), color)


KINDS: dict[str, tuple[str, Callable[[], Image.Image], tuple[int, int, int]]] = {
    "color": ("a.png", new("RGB", (1, 2, 3)), (1, 2, 3)),
    "color with a transparent color": ("a.png", lambda: keyed("RGB", (1, 2, 3)), (255, 255, 255)),
    "color with padding": ("a.tif", new("RGBX", (1, 2, 3, 0)), (1, 2, 3)),
    "gray": ("a.png", new("L", 77), (77, 77, 77)),
    "gray with a transparent level": ("a.png", lambda: keyed("L", 77), (255, 255, 255)),
    "black and white": ("a.png", new("1", 1), (255, 255, 255)),
    "black and white bitmap": ("a.pbm", new("1", 1), (255, 255, 255)),
    "palette": ("a.gif", lambda: palette(False), (10, 20, 30)),
    "palette with transparency": ("a.png", lambda: palette(True), (255, 255, 255)),
    "palette with alpha": ("a.tif", lambda: palette(False).convert("PA"), (10, 20, 30)),
    "RGBA, opaque": ("a.png", new("RGBA", (1, 2, 3, 255)), (1, 2, 3)),
    "RGBA, half transparent": ("a.webp", new("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
    "gray with alpha": ("a.png", new("LA", (0, 0)), (255, 255, 255)),
    "CMYK": ("a.tif", new("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
    "CMYK JPEG": ("a.JPG", new("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
    "YCbCr": ("a.tif", new("YCbCr", (255, 128, 128)), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_becomes_rgb_bytes(tmp_path: Path, kind: str) -> None:
    name, make, color = KINDS[kind]
    make().save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    pixels = read_picture(tmp_path / name)
    assert pixels.shape == (3, 4, 6)
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor(color, dtype=torch.uint8))


def test_lab_is_converted_as_color_management_does(tmp_path: Path) -> None:
    Image.new("LAB", (6, 4), (128, 128, 128)).save(tmp_path / "a.tif")  # L* 50: 119 in sRGB
    expected = torch.full((3,), 119, dtype=torch.uint8)
    torch.testing.assert_close(read_picture(tmp_path / "a.tif")[:, 0, 0], expected, atol=1, rtol=0)


DEPTHS = {
    "a.png": lambda levels: Image.fromarray(levels),
    "a.tif": lambda levels: Image.fromarray(levels),
    "big-endian.tif": lambda levels: Image.frombytes("I;16B", levels.shape[::-1], levels.astype(">u2").tobytes()),
    "a.pgm": lambda levels: Image.fromarray(levels),
    "a.jp2": lambda levels: Image.fromarray(levels),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_sixteen_bits_of_gray_keep_their_precision(tmp_path: Path, name: str) -> None:
    levels = np.array([[0, 1, 300], [40000, 65534, 65535]], dtype=np.uint16)
    DEPTHS[name](levels).save(tmp_path / name)
    pixels = read_picture(tmp_path / name)
    assert pixels.dtype == torch.float32
    expected = torch.tensor(levels / 65535, dtype=torch.float32).expand(3, -1, -1)
    torch.testing.assert_close(pixels, expected, atol=1e-7, rtol=0)


def test_a_transparent_level_of_sixteen_bits_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[7, 300]], dtype=np.uint16))
    image.save(tmp_path / "a.png", transparency=300)
    torch.testing.assert_close(read_picture(tmp_path / "a.png")[0], torch.tensor([[7 / 65535, 1.0]]))


def deep_png(pixels: Any, key: tuple[int, ...] = ()) -> bytes:
    """Return a PNG file of pixels (H, W, 3 or 4) with 16 bits, which Pillow does not write; `key` is transparent."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    hidden = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    content = chunk(b"IHDR", header) + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def deep_tiff(pixels: Any, order: str, compressed: bool) -> bytes:
    """Return a TIFF file of pixels (H, W, 3 or 4) with 16 bits, its bytes in the order `<` or `>`."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    alpha = {338: (3, 2)} if channels == 4 else {}
    rest = 8 + 2 + 12 * (9 + len(alpha)) + 4
    entries = {256: (4, width), 257: (4, height), 258: (3, rest), 259: (3, 8 if compressed else 1), 262: (3, 2)}
    entries |= {273: (4, rest + 2 * channels), 277: (3, channels), 278: (4, height), 279: (4, len(data))} | alpha
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, (kind, value) in entries.items():
        if tag == 258:
            content += struct.pack(f"{order}HHII", tag, kind, channels, value)
        else:
            content += struct.pack(f"{order}HHI" + ("H2x" if kind == 3 else "I"), tag, kind, 1, value)
    return content + struct.pack(f"{order}I{channels}H", 0, *[16] * channels) + data


DEEP = {
    "png": deep_png,
    "little-endian tiff": lambda pixels: deep_tiff(pixels, "<", False),
    "big-endian tiff": lambda pixels: deep_tiff(pixels, ">", False),
    "compressed tiff": lambda pixels: deep_tiff(pixels, "<", True),
    "compressed big-endian tiff": lambda pixels: deep_tiff(pixels, ">", True),
}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_of_color_keep_their_precision(tmp_path: Path, kind: str, channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (40, 60, channels))
    (tmp_path / "a").write_bytes(DEEP[kind](levels))
    pixels = read_picture(tmp_path / "a")
    values = torch.tensor(levels / 65535, dtype=torch.float32).movedim(2, 0)
    expected = values if channels == 3 else values[:3] * values[3:] + 1 - values[3:]
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_a_transparent_color_of_sixteen_bits_becomes_white(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(np.array([[[1, 2, 3], [40000, 5, 6], [1, 2, 4]]]), key=(1, 2, 3)))
    expected = torch.tensor([[65535, 65535, 65535], [40000, 5, 6], [1, 2, 4]]).T / 65535
    torch.testing.assert_close(read_picture(tmp_path / "a.png")[:, 0], expected)


def test_a_cut_picture_of_sixteen_bits_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(np.random.default_rng(0).integers(0, 65536, (40, 60, 3)))[:5000])
    with pytest.raises(UserError, match=r"picture .*a\.png cannot be read: ") as caught:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "level", "what"), [("F", 0.5, "floating-point"), ("I", 200, "32-bit integers")])
def test_pictures_without_a_white_level_are_refused(tmp_path: Path, mode: str, level: Any, what: str) -> None:
    Image.new(mode, (6, 4), level).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"picture .*a\.tif cannot be read: .*{what}.* which value is white"):
        read_picture(tmp_path / "a.tif")


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_picture(tmp_path / name)[:, 0, 0].tolist()[2] < 10


def test_a_camera_held_sideways_does_not_turn_the_picture(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "blue")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a clockwise quarter turn: the left side comes to the top
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_picture(tmp_path / "a.png")
    assert pixels.shape == (3, 20, 10)
    assert pixels[:, 0, 5].tolist() == [255, 0, 0]
    assert pixels[:, -1, 5].tolist() == [0, 0, 255]


def cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(path)
    os.truncate(path, path.stat().st_size // 2)


BROKEN = {
    "bomb": (write_bomb, "claims more pixels than"),
    "cut": (cut, "truncated|broken|unrecognized"),
    "text": (lambda path: path.write_text("no picture"), "it is no picture"),
    "empty": (lambda path: path.write_bytes(b""), "it is no picture"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "gone": (lambda path: None, "not there"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("read", [read_picture, read_image], ids=["data", "inpainting"])
def test_whatever_cannot_be_read_is_one_sentence_that_names_the_file(tmp_path: Path, kind: str, read: Any) -> None:
    write, why = BROKEN[kind]
    write(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif cannot be read: .*({why})") as caught:
        read(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("a.tif") == 1


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited."""
    waited: list[float] = []
    monkeypatch.setattr(pictures.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", sorted(pictures.TRANSIENT))
@pytest.mark.parametrize("failures", [1, 3, 99])
def test_errors_that_pass_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], number: int, failures: int
) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    calls, opened = 0, Image.open

    def flaky(path: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *rest)

    monkeypatch.setattr(Image, "open", flaky)
    if failures == 99:
        with pytest.raises(UserError, match=rf"a\.png cannot be read: {os.strerror(number)}"):
            read_picture(tmp_path / "a.png")
    else:
        assert read_picture(tmp_path / "a.png").shape == (3, 4, 6)
    assert len(pauses) == min(failures, 3)


def test_damaged_files_are_not_tried_again(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(UserError):
        read_picture(tmp_path / "gone.png")
    assert errno.ENOENT not in pictures.TRANSIENT
    assert pauses == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_vanishes_is_one_sentence_from_a_loader_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(loading, "default_workers", lambda dataset: workers)
    source = PictureFiles(PictureFolder(tmp_path), [File("gone.png", 1, 1)], None, ())
    images = Images(source, [0], DataConfig(name="pictures"))
    sentence = f"picture {tmp_path / 'gone.png'} cannot be read: it is not there (any more)"
    with pytest.raises(UserError) as caught:
        list(loading.batches(images, [0], 1))
    assert str(caught.value) == sentence
    keys = loading.StepKeys(1, TrainConfig(steps=2, batch_size=1), seed=0, start=0, rank=0, world=1)
    with pytest.raises(UserError) as caught, loading.training_batches(images, keys, workers, pin=False) as served:
        next(served)
    assert str(caught.value) == sentence


def test_formats_of_installed_plug_ins_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:
        """Read .heic files as if they were PNG files."""
        monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "IMG_1.HEIC")
    assert not find_pictures(tmp_path, set()).pictures
    pictures.picture_endings.cache_clear()
    try:
        assert [file.path for file in find_pictures(tmp_path, set()).pictures] == ["IMG_1.HEIC"]
        assert read_picture(tmp_path / "IMG_1.HEIC").shape == (3, 4, 6)
    finally:
        pictures.picture_endings.cache_clear()
