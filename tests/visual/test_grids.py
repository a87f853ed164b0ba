"""Grids contain their images, enlarged."""

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.visual.grids import grid, save_gallery, save_rows, to_uint8


def test_images_are_rounded_to_the_nearest_gray_level_and_clipped():
    assert to_uint8(torch.tensor([-1.0, 0.5, 0.999, 2.0])).tolist() == [0, 128, 255, 255]


def test_small_images_are_enlarged_to_64_pixels():
    assert grid(torch.rand(3, 3, 16, 16), columns=2).shape == (3, 2 * 66 + 2, 2 * 66 + 2)


@pytest.mark.parametrize("title", ["short", "a title that is wider than all images together " * 3])
def test_galleries_and_rows_show_every_image_under_a_title(title, tmp_path):
    colors = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 64, 64)
    save_gallery(colors, list("rgb"), title, tmp_path / "gallery.png", columns=2)
    save_rows({"all": colors, "first": colors[:1]}, title, tmp_path / "rows.png")
    for name, reds in (("gallery", 1), ("rows", 2)):
        sheet = np.array(Image.open(tmp_path / f"{name}.png"))
        assert (sheet == (255, 0, 0)).all(-1).sum() == reds * 64 * 64
        assert (sheet == (0, 0, 255)).all(-1).sum() == 64 * 64


def test_long_captions_do_not_run_into_their_neighbors(tmp_path):
    black = torch.zeros(3, 3, 64, 64)
    save_gallery(black, ["", "", ""], "t", tmp_path / "none.png", columns=3)
    save_gallery(black, ["12 a very long name of a class " * 4, "", ""], "t", tmp_path / "long.png", columns=3)
    none, long = (np.array(Image.open(tmp_path / f"{name}.png").convert("L")).astype(int) for name in ("none", "long"))
    assert long.shape[0] > none.shape[0], "without captions there is no room for them"
    columns = np.flatnonzero((long == 0).sum(0) >= 64)
    starts = columns[np.flatnonzero(np.diff(columns, prepend=-9) > 1)]
    assert len(starts) == 3
    caption = long[28 + 64 : 28 + 64 + 16]  # under the images
    assert (caption[:, starts[0] : starts[1] - 6] < 255).any()
    assert (caption[:, starts[1] - 6 :] == 255).all()
    assert long.shape[1] <= 3 * (2 * 64 + 6) + 12, "longer ones are cut"
