"""Checkpoints of diffusion autoencoders become runs that compute the same, and go back, tensor for tensor."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rcg.config import load_experiment
from rcg.core import checkpoint, pretrained
from rcg.core.contracts import Space
from rcg.core.registry import GENERATORS, NETWORKS
from rcg.diffusion.model import build
from rcg.editing.directions import Direction
from rcg.encoding.encoder import build_encoder
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import diffae
from rcg.pipeline import Pipeline, SamplingOptions
from rcg.visual.grids import to_pil
from tests.generators import diffae as original
from tests.generators.diffae import Sizes, network
from tests.generators.originals import convert, shapes
from tests.parity import DATA
from tests.small import make_part
from tests.toy import ROOT, complaint, snapshot, tool, train, write

SIZES = Sizes()
PUBLISHED = {
    64: Sizes(64, 64, (1, 2, 4, 8), (1, 2, 4, 8, 8), 2, 2, 512, 512, 2048, 10),
    128: Sizes(128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4), 2, 2, 512, 512, 2048, 20),
    256: Sizes(256, 128, (1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 4, 4, 4), 2, 2, 512, 512, 2048, 10),
}
"""Sizes of the networks for CelebA, horses and bedrooms, and FFHQ."""


@pytest.fixture(scope="module")
def content():
    """A file with a latent network."""
    return original.checkpoint(SIZES)


@pytest.fixture(scope="module")
def run(content, tmp_path_factory):
    """The run that becomes of it."""
    folder = tmp_path_factory.mktemp("diffae")
    torch.save(content, folder / "last.ckpt")
    convert("diffae", folder / "last.ckpt", folder / "run")
    return folder / "run"


@pytest.fixture
def image():
    return torch.rand(2, 3, SIZES.side, SIZES.side, generator=torch.Generator().manual_seed(1))


def statistics(content):
    return content["state_dict"]["conds_mean"], content["state_dict"]["conds_std"]


def test_the_encoder_gives_the_same_representations_standardized_over_the_data_set(content, run, image):
    mean, std = statistics(content)
    expected = (original.encode(network(content), SIZES, image * 2 - 1) - mean) / std
    torch.testing.assert_close(Pipeline.from_pretrained(run).represent(image), expected, rtol=1e-5, atol=1e-5)


def test_the_u_net_predicts_the_same_noise(content, run, image):
    (mean, std), z, t = statistics(content), torch.randn(2, SIZES.z), torch.tensor([3, 900])
    expected = original.denoise(network(content), SIZES, image * 2 - 1, t, z * std + mean)
    model = Pipeline.from_pretrained(run).generator
    torch.testing.assert_close(model.network(image * 2 - 1, t, z)[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert model.network.bottleneck() is model.network.network.unet.bottleneck


def test_the_latent_network_predicts_the_same_noise(content, run):
    z, t = torch.randn(2, SIZES.z), torch.tensor([3, 900])
    expected = original.denoise_latent(network(content), SIZES, z, t)
    model = Pipeline.from_pretrained(run).rdm
    torch.testing.assert_close(model.network(z, t)[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert (model.config.process.loss, model.config.process.schedule) == ("l1", "constant")


class Given:
    """A source of noise that gives the same tensor again and again."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, shape):
        return self.noise


@torch.no_grad()
def test_images_are_sampled_along_the_same_walks(content, run):
    tensors, (mean, std) = network(content), statistics(content)
    draws = torch.Generator().manual_seed(2)
    z, x = torch.randn(2, SIZES.z, generator=draws), torch.randn(2, 3, SIZES.side, SIZES.side, generator=draws)
    constant, linear = torch.full((1000,), 0.008), torch.linspace(1e-4, 0.02, 1000)

    def latent(x, t):
        return original.denoise_latent(tensors, SIZES, x, t)

    expected_z = original.walk(latent, z, constant, 10, clip=False)

    def pixels(x, t):
        return original.denoise(tensors, SIZES, x, t, expected_z * std + mean)

    expected = original.walk(pixels, x, linear, 10, clip=True)
    pipeline = Pipeline.from_pretrained(run)
    rdm, generator = pipeline.rdm, pipeline.generator
    found_z = rdm.sample(None, Given(z), sampler=rdm.config.sampler.with_steps(10))
    torch.testing.assert_close(found_z, expected_z, rtol=1e-4, atol=1e-4)
    found = generator.sample(found_z, Given(x), sampler=generator.config.sampler.with_steps(10))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sizes", "latent"), [(SIZES, True), (SIZES, False), (SIZES._replace(z=0), False)])
def test_there_and_back_gives_every_tensor(sizes, latent, tmp_path):
    content = original.checkpoint(sizes, latent)
    torch.save(content, tmp_path / "last.ckpt")
    convert("diffae", tmp_path / "last.ckpt", tmp_path / "run")
    convert("diffae", tmp_path / "run", tmp_path / "back.ckpt", "--back")
    back = pretrained.read(tmp_path / "back.ckpt")
    assert (back["state_dict"].keys(), back["global_step"]) == (content["state_dict"].keys(), 70)
    assert content["hyper_parameters"].items() <= back["hyper_parameters"].items()
    for key, value in content["state_dict"].items():
        assert back["state_dict"][key].dtype == value.dtype
        assert torch.equal(back["state_dict"][key], value), key


def test_a_run_that_was_trained_here_computes_the_same_in_the_original_format(tmp_path):
    sizes = Sizes(side=16, encoder_multipliers=(1, 2), encoder_blocks=1)
    unet = {"width": 32, "multipliers": [1, 2], "blocks": 1, "groups": 32, "attention": [16], "heads": 1}
    train_section = {"steps": 2, "batch_size": 8, "lr": 1e-3, "ema_decay": 0.5, "precision": "no", "tracker": "none"}
    brief = {"train": train_section, "sampler": {"name": "ddim", "steps": 2, "spacing": "leading"}}
    process = {"name": "gaussian", "variance": "fixed_large"}
    style = {"condition_path": "style", "embedding_width": 48, "condition_dropout": 0, "process": process}
    latent = {"width": 20, "depth": 3, "time_width": 12, "process": {"schedule": "constant", "predict": "eps"}}
    experiment = write(
        tmp_path,
        data__limit=40,
        normalize="per_dataset",
        encoder={"name": "semantic", "dim": 12, **unet},
        generator={"name": "adm", **brief, **unet, **style},
        rdm={"name": "skip_mlp", **brief, **latent},
    )
    for stage in ("generator", "rdm"):
        train(stage, experiment)
    convert("diffae", tmp_path / "run", tmp_path / "ours.ckpt", "--back")
    content = pretrained.read(tmp_path / "ours.ckpt")
    assert shapes(network(content)) == original.with_twins(original.network_shapes(sizes))
    assert content["state_dict"].keys() == original.checkpoint(sizes)["state_dict"].keys()
    pipeline, image = Pipeline.from_pretrained(tmp_path / "run"), torch.rand(2, 3, 16, 16)
    (mean, std), t = statistics(content), torch.tensor([3, 900])
    rep = original.encode(network(content), sizes, image * 2 - 1)
    z = pipeline.represent(image)
    torch.testing.assert_close(z, (rep - mean) / std, rtol=1e-5, atol=1e-5)
    expected = original.denoise(network(content), sizes, image, t, rep)
    torch.testing.assert_close(pipeline.generator.network(image, t, z)[:, 0], expected, rtol=1e-5, atol=1e-5)
    expected = original.denoise_latent(network(content), sizes, z, t)
    torch.testing.assert_close(pipeline.rdm.network(z, t)[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_averaged_weights_replace_missing_live_ones(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for stage in ("encoder", "rdm", "adm"):
        RunFolder(tmp_path / "run").stage_folder(stage).original.unlink()
    convert("diffae", tmp_path / "run", tmp_path / "back.ckpt", "--back")
    back = pretrained.read(tmp_path / "back.ckpt")
    for key, value in network(back).items():
        assert torch.equal(network(back, average=False)[key], value)


def test_a_u_net_without_an_encoder_becomes_an_unconditional_generator(image, tmp_path):
    sizes = SIZES._replace(z=0)
    content = original.checkpoint(sizes, latent=False)
    torch.save(content, tmp_path / "last.ckpt")
    convert("diffae", tmp_path / "last.ckpt", tmp_path / "run")
    pipeline, t = Pipeline.from_pretrained(tmp_path / "run"), torch.tensor([3, 900])
    expected = original.denoise(network(content), sizes, image * 2 - 1, t)
    found = pipeline.generator.network(image * 2 - 1, t)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert pipeline.sample(1, SamplingOptions(steps=2), output="tensor").shape == (1, *image.shape[1:])


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_are_those_of_the_settings_or_asked_for(heads, image, tmp_path):
    sizes = SIZES._replace(heads=heads)
    content = original.checkpoint(sizes, latent=False)
    torch.save(content, tmp_path / "last.ckpt")
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.ckpt")
    refused = complaint(tool("convert", "diffae", tmp_path / "bare.ckpt", tmp_path / "asked"))
    assert "a width of 32 and multipliers [1, 2] at 32 px, which were not published" in refused
    assert "give them as --heads" in refused
    assert not (tmp_path / "asked").exists()
    convert("diffae", tmp_path / "last.ckpt", tmp_path / "run")
    convert("diffae", tmp_path / "bare.ckpt", tmp_path / "asked", "--heads", heads)
    expected = original.encode(network(content), sizes, image * 2 - 1)
    for folder in ("run", "asked"):
        found = Pipeline.from_pretrained(tmp_path / folder).represent(image)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def published(sizes):
    """Return the encoder, the U-Net and the latent network of a file with its sizes alone, without memory."""
    found = original.with_twins(original.network_shapes(sizes))
    tensors = {key: torch.empty(shape, device="meta") for key, shape in found.items()}
    # Twins are compared, for which they need values; these share one.
    tensors |= {key: torch.ones(()).expand(found[key]) for key in found if key.startswith("latent_net.")}
    file = diffae.Original(Path("last.ckpt"), tensors, {}, {}, {}, sizes.side, 0)
    heads, z = diffae._heads(file, None), Space((sizes.z,))
    with torch.device("meta"):
        return diffae._encoder(file, heads), diffae._generator(file, heads, z), diffae._rdm(file, z)


@pytest.mark.parametrize("side", PUBLISHED)
def test_the_published_networks_fit_by_name_and_shape_and_go_back(side):
    sizes = PUBLISHED[side]
    encoder, generator, rdm = published(sizes)
    assert (encoder.config.attention, generator.config.attention) == ((16,), (16,))
    assert (rdm.config.width, rdm.config.depth) == (2048, sizes.layers)
    back = diffae.unet_to_original(generator.state_dict(), 1)
    back |= {f"encoder.{key}": value for key, value in diffae.encoder_to_original(encoder.state_dict(), 1).items()}
    back |= {f"latent_net.{key}": value for key, value in diffae.latent_to_original(rdm.state_dict()).items()}
    assert shapes(back) == original.with_twins(original.network_shapes(sizes))


def test_the_recipe_trains_what_was_published():
    encoder, generator, rdm = published(PUBLISHED[128]._replace(layers=10))
    recipe = load_experiment(ROOT / "configs" / "diffae.yaml")
    with torch.device("meta"):
        ours = {
            build_encoder(recipe.encoder, 128, load=False): encoder,
            build(recipe.generator, GENERATORS.get("adm"), Space((3, 128, 128)), Space((512,))): generator,
            build(recipe.rdm, NETWORKS.get("skip_mlp"), Space((512,)), None): rdm,
        }
    for one, other in ours.items():
        assert shapes(one.state_dict()) == shapes(other.state_dict())
    assert recipe.encoder.heads == recipe.generator.heads == encoder.config.heads == generator.config.heads == 1
    for section, model in ((recipe.generator, generator), (recipe.rdm, rdm)):
        learns, converted = section.process, model.config.process
        assert (learns.schedule, learns.predict, learns.loss) == (converted.schedule, converted.predict, converted.loss)
        assert section.sampler == model.config.sampler
    assert (recipe.normalize, recipe.generator.dropout) == ("per_dataset", generator.config.dropout)


@pytest.mark.slow
def test_a_full_size_file_converts_without_its_settings_and_goes_back(tmp_path):
    sizes = PUBLISHED[256]
    found = original.with_twins(original.network_shapes(sizes))
    found = {f"{prefix}.{key}": shape for prefix in ("model", "ema_model") for key, shape in found.items()}
    found |= {"x_T": (4, 3, 256, 256), "conds_mean": (1, 512), "conds_std": (1, 512)}
    # Of each tensor the file holds one value.
    torch.save(
        {"state_dict": {key: torch.tensor(0.5).expand(shape) for key, shape in found.items()}}, tmp_path / "full"
    )
    convert("diffae", tmp_path / "full", tmp_path / "run")
    convert("diffae", tmp_path / "run", tmp_path / "back", "--back")
    assert shapes(pretrained.read(tmp_path / "back")["state_dict"]) == found
    shutil.rmtree(tmp_path)  # some gigabytes


def refused(content, folder, *options):
    """Return the sentence with which a file is refused, before anything is written."""
    torch.save(content, folder / "last.ckpt")
    sentence = complaint(tool("convert", "diffae", folder / "last.ckpt", folder / "run", *options))
    assert not (folder / "run").exists()
    return sentence


def with_tensors(content, keep=lambda key: True, **changes):
    """Return a file with other tensors; in their names `__` stands for a dot."""
    tensors = {key: value for key, value in content["state_dict"].items() if keep(key)}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return content | {"state_dict": tensors | changes}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ema_model__encoder__out__3__bias", torch.full((12,), torch.nan), "ema_model.encoder.out.3.bias holds values"),
        ("ema_model__out__2__bias", torch.ones(4), "its live network is another than its average"),
        ("conds_std", torch.zeros(1, 12), "conds_std holds values that are not positive"),
        ("conds_mean", torch.zeros(1, 11), "mean is (11,) instead of (12,)"),
        ("ema_model__latent_net__layers__0__cond_layers__1__bias", torch.ones(20), "must hold the same values as"),
        ("x_T", torch.ones(3), "does not say the side of its images"),
    ],
)
def test_a_file_with_wrong_tensors_is_refused(key, value, said, content, tmp_path):
    assert said in refused(with_tensors(content, **{key: value}), tmp_path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "ema_model.input_blocks.0",
            "is not a checkpoint of a diffusion autoencoder: it has no ema_model.input_blocks",
        ),
        ("encoder.", "last.ckpt does not fit GenerativeModel: it has also network.unet.down.0.0.style.weight"),
        ("conds_", "has a latent network, but no conds_mean"),
        ("middle_block.0.emb_layers.1.bias", "does not fit GenerativeModel: it lacks network.unet.bottleneck.0.time"),
        ("latent_net.layers.0.linear.", "describe no diffusion autoencoder ('layers.0.linear.weight')"),
        ("output_blocks", "describe no diffusion autoencoder"),
    ],
)
def test_a_file_without_some_tensors_is_refused(missing, said, content, tmp_path):
    assert said in refused(with_tensors(content, lambda key: missing not in key), tmp_path)


@pytest.mark.parametrize("shape", [(), (12,), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize(
    "name", ["encoder.out.3", "input_blocks.0.0", "time_embed.time_embed.0", "latent_net.time_embed.0"]
)
def test_tensors_of_any_shape_are_refused_in_a_sentence(name, shape, content, tmp_path):
    changes = {f"{prefix}.{name}.weight": torch.ones(shape) for prefix in ("model", "ema_model")}
    assert "last.ckpt" in refused(with_tensors(content, **changes), tmp_path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"beta_scheduler": "const0.01"}, "beta_scheduler is 'const0.01', and linear, cosine, const0.008 can be"),
        ({"latent_beta_scheduler": ["linear"]}, "latent_beta_scheduler is ['linear']"),
        ({"net_latent_condition_bias": 0}, "net_latent_condition_bias is 0, and only 1 can be converted"),
        ({"net_beatgans_attn_head": "two"}, "net_beatgans_attn_head is 'two', not a number"),
        ({"net_enc_num_res_blocks": -1}, "describe no diffusion autoencoder"),
        ({"net_enc_num_res_blocks": 1}, "does not fit Semantic"),
    ],
)
def test_a_file_that_was_trained_in_another_way_is_refused(setting, said, content, tmp_path):
    assert said in refused(content | {"hyper_parameters": content["hyper_parameters"] | setting}, tmp_path)


def test_other_files_are_refused(content, tmp_path):
    for foreign in (DATA / "ckpt_rdm_uncond.pth", DATA / "ckpt_dit_tiny.pth"):
        said = complaint(tool("convert", "diffae", foreign, tmp_path / "run"))
        assert f"{foreign} is not a checkpoint of a diffusion autoencoder" in said
    torch.save(content, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-5000])
    assert "truncated" in complaint(tool("convert", "diffae", tmp_path / "cut.ckpt", tmp_path / "run"))
    assert "is not an ADM checkpoint" in complaint(tool("convert", "adm", tmp_path / "whole.ckpt", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_such_parts_is_left_alone(run, tmp_path, content):
    shutil.copytree(run, tmp_path / "run")
    torch.save(content, tmp_path / "last.ckpt")
    before = snapshot(tmp_path)
    for part in ("encoder", "rdm"):
        said = complaint(tool("convert", "diffae", tmp_path / "last.ckpt", tmp_path / "run"))
        assert f"{tmp_path / 'run' / part} is there already: choose another folder" in said
        assert snapshot(tmp_path) == before
        shutil.rmtree(tmp_path / "run" / part)
        before = snapshot(tmp_path)


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("adm", {"process": {"name": "gaussian", "predict": "v", "variance": "fixed_large"}}, "has process.predict v"),
        ("adm", {"heads": None}, "chooses its attention heads by their width"),
        ("adm", {"condition_path": "time"}, "has condition_path time"),
        ("encoder", {"heads": 2}, "has heads 2"),
        ("rdm", {"time_width": 16}, "has time_width 16"),
    ],
)
def test_parts_that_the_original_code_would_take_for_others_do_not_go_back(stage, changes, said, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run").stage_folder(stage)
    part = folder.part()
    checkpoint.save(folder.checkpoint, replace(part, config=part.config | changes))
    assert said in complaint(tool("convert", "diffae", tmp_path / "run", tmp_path / "back.ckpt", "--back"))
    assert not (tmp_path / "back.ckpt").exists()


def test_networks_that_the_original_code_does_not_know_do_not_go_back(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for stage, name in ((folder.rdm, "rep_mlp"), (folder.encoder, "moco_v3")):
        checkpoint.save(stage.checkpoint, make_part(stage.name, name))
        said = complaint(tool("convert", "diffae", tmp_path / "run", tmp_path / "back.ckpt", "--back"))
        assert f"has name {name}, which the original code cannot load" in said


def test_a_generator_of_z_does_not_go_back(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    stage, z = folder.stage_folder("adm"), folder.rdm.part().facts.data
    part = stage.part()
    checkpoint.save(stage.checkpoint, replace(part, facts=part.facts.model_copy(update={"cond": z})))
    said = complaint(tool("convert", "diffae", tmp_path / "run", tmp_path / "back.ckpt", "--back"))
    assert "the original code takes them as they leave the encoder" in said


def test_an_autoencoder_without_a_latent_network_reconstructs_and_says_what_sampling_needs(image, tmp_path):
    content = original.checkpoint(SIZES, latent=False)
    torch.save(content, tmp_path / "last.ckpt")
    convert("diffae", tmp_path / "last.ckpt", tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    code = pipeline.encode(image, steps=4)
    expected = original.encode(network(content), SIZES, image * 2 - 1)
    torch.testing.assert_close(code.z, expected, rtol=1e-5, atol=1e-5)
    assert pipeline.decode(code, steps=4).shape == image.shape
    assert "run tools/train_rdm.py" in complaint(tool("sample", tmp_path / "run", "--num", 1))


def classifier(content, classes=40, seed=0, **settings):
    """Return the file of a classifier of z; as its authors save it, without the networks."""
    statistics = {key: content["state_dict"][key] for key in ("conds_mean", "conds_std")}
    weight = torch.randn(classes, SIZES.z, generator=torch.Generator().manual_seed(seed))
    found = {
        f"{name}.{key}": value
        for name in ("classifier", "ema_classifier")
        for key, value in {"weight": weight, "bias": weight[:, 0]}.items()
    }
    return {"state_dict": statistics | found, "hyper_parameters": settings, "global_step": 5}


def test_a_classifier_becomes_directions_that_edit_as_its_authors_do(content, run, image, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = classifier(content)
    torch.save(file, tmp_path / "cls.ckpt")
    convert("diffae", tmp_path / "cls.ckpt", tmp_path / "run")
    found = RunFolder(tmp_path / "run").attributes
    assert len(list(found.iterdir())) == 40
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    smile = Direction.load(found / "Smiling.safetensors", pipeline.representation.space)
    z = pipeline.represent(image)
    direction = torch.nn.functional.normalize(file["state_dict"]["classifier.weight"][31], dim=0)
    torch.testing.assert_close(smile.move(z, 0.3), z + 0.3 * 12**0.5 * direction)
    assert "is there already" in complaint(tool("convert", "diffae", tmp_path / "cls.ckpt", tmp_path / "run"))
    picture = tmp_path / "face.png"
    to_pil(image[0]).save(picture)
    edited = tool(
        "edit",
        tmp_path / "run",
        "--images",
        picture,
        "--attribute",
        found / "Smiling.safetensors",
        "--steps",
        2,
        "--strength",
        0,
        1,
    )
    assert edited.returncode == 0, edited.stderr


@pytest.mark.parametrize(
    ("classes", "settings", "changes", "said"),
    [
        (3, {}, {}, "has a classifier of (3, 12)"),
        (1, {}, {}, "has a classifier of (1, 12)"),
        (40, {}, {"classifier__weight": torch.tensor(1.0)}, "has a classifier of ()"),
        (40, {}, {"classifier__weight": torch.zeros(40, 12)}, "has a classifier of (40, 12)"),
        (1, {"manipulate_cls": "../Male"}, {"conds_std": torch.ones(1, 12)}, "was trained on other z than"),
        (40, {}, {"conds_mean": torch.zeros(1, 12)}, "was trained on other z than"),
        (40, {}, {"classifier__weight": torch.ones(40, 11)}, "was trained on other z than"),
    ],
)
def test_a_classifier_of_something_else_is_refused(classes, settings, changes, said, content, run, tmp_path):
    torch.save(with_tensors(classifier(content, classes, **settings), **changes), tmp_path / "cls.ckpt")
    assert said in complaint(tool("convert", "diffae", tmp_path / "cls.ckpt", run))
    assert not RunFolder(run).attributes.exists()
