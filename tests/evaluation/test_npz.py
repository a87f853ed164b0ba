""".npz files of strangers: one sentence for each fault, without the memory that they claim, and nothing unpickled."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from rcg.core.errors import UserError
from rcg.evaluation.references import read_reference
from rcg.evaluation.samples import npz_images

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code was executed",))


def header(shape, descr="|u1", order=False):
    buffer = io.BytesIO()
    fields = {"descr": descr, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def archive(path, compression=zipfile.ZIP_DEFLATED, **entries):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)
    return path


def array(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


IMAGE_FAULTS = {
    "a shape of terabytes": ({"arr_0": header((10**8, 64, 64, 3)) + b"0" * 9999}, "more than the file can hold"),
    "a shape beyond all numbers": ({"arr_0": header((2**62, 2**62, 2**62, 3))}, "more than the file can hold"),
    "a negative shape": ({"arr_0": header((-1, 4, 4, 3)) + b"0" * 99}, "claims a shape"),
    "no images": ({"arr_0": array(IMAGES[:0])}, "holds no images"),
    "no pixels": ({"arr_0": array(IMAGES[:, :0, :0])}, "holds no images"),
    "oblong images": ({"arr_0": array(np.zeros((3, 4, 5, 3), np.uint8))}, "must be (N, S, S, 3) uint8"),
    "objects": ({"arr_0": header((1,), "|O") + pickle.dumps(Bomb())}, "holds Python objects, which are never loaded"),
    "text": ({"arr_0": array(np.array(["a"]))}, "must be (N, S, S, 3) uint8"),
    "columns": ({"arr_0": array(np.asfortranarray(np.ones((3, 4, 4, 3), np.uint8)))}, "stored by columns"),
    "no header": ({"arr_0": b"text"}, "is not an .npz file that can be read"),
    "a header of code": ({"arr_0": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}, "is not an .npz file"),
    "a deep header": ({"arr_0": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000}, "is not an .npz"),
    "another array": ({"arr_1": array(IMAGES)}, "holds no arr_0"),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_batch_of_images_that_is_none_gives_one_sentence(tmp_path, fault):
    entries, said = IMAGE_FAULTS[fault]
    path = archive(tmp_path / "odd.npz", **entries)
    for read in (npz_images, lambda path: read_reference(path, 4)):
        with pytest.raises(UserError) as error:
            read(path)
        assert said in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_the_compressions_of_numpy_are_read(tmp_path, compression):
    path = archive(tmp_path / "odd.npz", compression, arr_0=array(IMAGES))
    with pytest.raises(UserError, match="compressed in a way that numpy does not write"):
        npz_images(path)


def test_an_array_that_comes_twice_is_refused(tmp_path):
    path = archive(tmp_path / "odd.npz", arr_0=array(IMAGES))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("arr_0.npy", array(IMAGES + 1))
    with pytest.raises(UserError, match="holds two arrays called arr_0"):
        npz_images(path)


def test_damage_is_found_where_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    path = archive(tmp_path / "odd.npz", arr_0=array(noise))
    content = bytearray(path.read_bytes())
    content[9000:12000] = b"\xff" * 3000
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"odd.npz is (damaged|truncated)"):
        list(npz_images(path).batches(range(30)))


GOOD, EYE = np.zeros(4), np.eye(4)
STATISTIC_FAULTS = {
    "a mean alone": ({"mu": GOOD}, "holds mu but no sigma"),
    "a covariance alone": ({"sigma": EYE}, "holds sigma but no mu"),
    "no number in the mean": ({"mu": GOOD * np.nan, "sigma": EYE}, "mu holds numbers that are not finite"),
    "no number in the covariance": ({"mu": GOOD, "sigma": EYE * np.inf}, "sigma holds numbers that are not finite"),
    "text": ({"mu": np.array(["a"] * 4), "sigma": EYE}, "are not the mean (D,) and covariance (D, D)"),
    "integers": ({"mu": GOOD.astype(int), "sigma": EYE}, "floating-point numbers"),
    "complex numbers": ({"mu": GOOD, "sigma": EYE * 1j}, "floating-point numbers"),
    "other widths": ({"mu": GOOD, "sigma": np.eye(5)}, "are not the mean (D,) and covariance (D, D)"),
    "no width": ({"mu": GOOD[:0], "sigma": EYE[:0, :0]}, "are not the mean (D,) and covariance (D, D)"),
    "no covariance": ({"mu": GOOD, "sigma": np.triu(np.ones((4, 4)))}, "is not symmetric"),
    "a negative variance": ({"mu": GOOD, "sigma": -EYE}, "a variance is negative"),
}


@pytest.mark.filterwarnings("ignore:(divide|invalid)")
@pytest.mark.parametrize("fault", STATISTIC_FAULTS)
def test_statistics_that_are_none_give_one_sentence(tmp_path, fault):
    entries, said = STATISTIC_FAULTS[fault]
    path = archive(tmp_path / "odd.npz", **{name: array(values) for name, values in entries.items()})
    with pytest.raises(UserError) as error:
        read_reference(path, 4)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("mu", "said"),
    [
        (header((4,), "|O") + pickle.dumps([Bomb()] * 4), "holds Python objects, which are never loaded"),
        (header((10**11,), "<f8") + b"0" * 999, "more than the file can hold"),
    ],
)
def test_statistics_are_never_unpickled_nor_bigger_than_their_file(tmp_path, mu, said):
    path = archive(tmp_path / "odd.npz", mu=mu, sigma=array(EYE))
    with pytest.raises(UserError, match=said):
        read_reference(path, 4)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_statistics_of_every_precision_are_read(tmp_path, dtype):
    path = archive(tmp_path / "good.npz", mu=array(GOOD.astype(dtype)), sigma=array(EYE.astype(dtype)))
    gaussian = read_reference(path, 4).statistics["2048"]
    assert gaussian.distance(gaussian) == pytest.approx(0, abs=1e-9)
    assert float(gaussian.factor.square().sum()) == pytest.approx(4)


def test_a_reference_of_another_size_is_said_to_be(tmp_path):
    path = archive(tmp_path / "good.npz", arr_0=array(IMAGES))
    assert not read_reference(path, 4).doubts
    (doubt,) = read_reference(path, 16).doubts
    assert f"the images of {path} are of 4 px, those compared with them of 16 px" in doubt
