"""A pipeline travels whole: it generates and encodes alike before and after, and its card says what it is."""

import pytest
import torch
import yaml
from PIL import Image

from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.encoding.encoder import open_encoder
from rcg.encoding.transform import Transform, restore_transform, transform_part
from rcg.pipeline import Pipeline, SamplingOptions
from tests.small import ENCODER, SIZE, make_run

PROJECTIONS = [None, {"width": 3}, {"width": 4, "whiten": True}]


def same(one, other):
    """Check that two pipelines generate and encode alike."""
    options = SamplingOptions(seed=3, steps=2, rdm_steps=2)
    a, b = (pipeline.generate(range(2), options) for pipeline in (one, other))
    assert torch.equal(a.images, b.images)
    image = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(one.represent(image), other.represent(image))
    assert one.representation.space == other.representation.space == one.rdm.data


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("normalize", ["per_sample", "per_dataset", "none"])
def test_every_transform_travels(normalize, projection, tmp_path):
    run = make_run(tmp_path, normalize=normalize, projection=projection)
    pipeline = Pipeline.from_pretrained(run.path)
    same(pipeline, Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved")))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("swav", "vicreg") else ())  # ResNets of full size
        for name in ENCODERS.names()
        if "weights" in ENCODER.get(name, {})
    ],
)
def test_every_encoder_travels_with_its_weights(name, tmp_path):
    run = make_run(tmp_path, {"name": name, **ENCODER[name]}, "per_dataset", {"width": 4})
    pipeline = Pipeline.from_pretrained(run.path)
    folder = pipeline.save_pretrained(tmp_path / "saved")
    same(pipeline, Pipeline.from_pretrained(folder))


def test_a_generator_without_representations_needs_no_encoder(tmp_path):
    run = make_run(tmp_path, normalize="per_dataset", condition="none")
    run.rdm.checkpoint.unlink()
    folder = Pipeline.from_pretrained(run.path).save_pretrained(tmp_path / "saved")
    assert Pipeline.from_pretrained(folder).generate(range(2)).images.shape == (2, 3, SIZE, SIZE)


def test_a_transform_that_is_lost_or_another_is_said_to_be(tmp_path):
    run = make_run(tmp_path, normalize="per_dataset")
    pipeline = Pipeline.from_pretrained(run.path)
    for path in run.fitted_folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"does not hold the transform per_dataset-.*tools/cache\.py"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"normalize": "per_datasets"}, {}, "config.normalize is wrong"),
        ({"normalise": "none"}, {}, "config is wrong: unknown key; it is called 'normalize'"),
        ({"normalize": "per_dataset"}, {}, "it lacks mean, std"),
        ({"normalize": "none"}, {"mean": torch.zeros(6)}, "it has also mean"),
        ({"normalize": "per_dataset"}, {"mean": torch.zeros(5), "std": torch.ones(6)}, r"mean is \(5,\)"),
        ({"normalize": "per_dataset"}, {"mean": torch.zeros(6).double(), "std": torch.ones(6)}, "of torch.float64"),
        ({"projection": {"width": 10**9}}, {}, "config.projection.width is wrong"),
        ({"projection": {"width": 3}}, {}, "it lacks center"),
    ],
)
def test_an_edited_transform_is_refused_by_name(config, tensors, said):
    with pytest.raises(UserError, match=rf"transform.safetensors.*{said}"):
        restore_transform(Part("transform", config, Facts(), tensors, "transform.safetensors"), 6)


def test_a_transform_comes_back_from_its_part():
    transform = Transform("per_dataset")
    transform.fit(torch.randn(50, 6))
    assert restore_transform(transform_part(transform), 6).id == transform.id


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.from_pretrained(make_run(tmp_path_factory.mktemp("manners")).path)


def test_sample_gives_pictures_or_a_tensor(pipeline):
    options = SamplingOptions(seed=1, steps=2, rdm_steps=2)
    pictures = pipeline.sample(3, options, batch_size=2)
    assert [type(picture) for picture in pictures] == [Image.Image] * 3
    assert pictures[0].size == (SIZE, SIZE)
    images = pipeline.sample(3, options, output="tensor")
    assert images.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(images, pipeline.generate(range(3), options).images)


def test_it_says_what_it_is_and_follows_a_device(pipeline):
    said = repr(pipeline)
    assert said == f"Pipeline(generator=dit, rdm=rep_mlp, encoder=moco_v3, condition=representation, {SIZE} px, cpu)"
    assert pipeline.to("cpu") is pipeline
    assert Pipeline.from_pretrained(pipeline.run.path, device="cpu").device.type == "cpu"


def card(folder):
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_card_states_license_metrics_with_their_protocol_and_a_gallery(tmp_path):
    run = make_run(tmp_path)
    run.gallery.mkdir()
    Image.new("RGB", (4, 4)).save(run.gallery / "gallery.png")
    report = run.evaluation / "dit-500-abc" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(
        '{"num": 500, "title": "x", "samples": {"seed": 0, "run": "/home/me/run"}, "reference": {"name": "train"}, '
        '"scores": [{"name": "FD", "value": 3.25, "std": 0.125, "space": "own"}]}'
    )
    folder = Pipeline.from_pretrained(run.path).save_pretrained(tmp_path / "saved", license="mit")
    header, text = card(folder)
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "unconditional-image-generation"
    assert "Evaluation of 500 samples" in text
    assert "| reference: name | train |" in text
    assert "| FD | 3.25 ± 0.12 | own |" in text
    assert "/home/me" not in text
    assert "![samples](gallery.png)" in text
    assert (folder / "gallery.png").is_file()


def test_nothing_is_uploaded_without_a_license(pipeline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with pytest.raises(UserError, match="say under which license"):
        pipeline.push_to_hub("me/digits")


def test_a_license_that_forbids_commerce_travels_with_the_encoder(tmp_path):
    network = open_encoder(ENCODERS.get("dino").Config(**ENCODER["dino"]), SIZE)
    section = {"name": "msn", **ENCODER["msn"], "weights": str(tmp_path / "d.pth")}
    torch.save({k.removeprefix("trunk."): v for k, v in network.state_dict().items()}, tmp_path / "d.pth")
    pipeline = Pipeline.from_pretrained(make_run(tmp_path, section).path)
    with pytest.raises(UserError, match=r"the encoder's weights.*are under cc-by-nc-4\.0"):
        pipeline.push_to_hub("me/digits")
    with pytest.raises(UserError, match="forbids commercial use and travels"):
        pipeline.push_to_hub("me/digits", license="mit")
    folder = pipeline.save_pretrained(tmp_path / "saved", license="cc-by-nc-4.0")
    assert card(folder)[0]["license"] == "cc-by-nc-4.0"
    assert "under cc-by-nc-4.0" in card(folder)[1]
    (tmp_path / "d.pth").unlink()
    same(pipeline, Pipeline.from_pretrained(folder))
