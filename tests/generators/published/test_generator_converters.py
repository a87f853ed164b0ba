"""Checkpoints of DiT, ADM and LDM become runs and go back, tensor for tensor; full-size ones by name and shape."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Space
from rcg.core.registry import ENCODERS, GENERATORS
from rcg.diffusion.model import build, restore
from rcg.encoding.autoencoder import restore_autoencoder
from rcg.encoding.encoder import build_encoder
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _adm, _encoder, _rcg, _unet, adm, dit, ldm
from rcg.generators.published._files import LIVE, load_extra
from rcg.nn import sincos_positions
from tests.generators.originals import convert, listed_tensors, shapes
from tests.parity import DATA, recorded, state
from tests.small import make_part
from tests.toy import tool


def equal(before, after):
    assert set(before) == set(after)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_a_dit_checkpoint_becomes_a_run_and_goes_back(tmp_path):
    original = DATA / "ckpt_dit_tiny.pth"
    convert("dit", original, tmp_path / "run", "--heads", 4)
    part = RunFolder(tmp_path / "run").stage_folder("dit").part()
    model = restore(part, GENERATORS)
    assert (model.config.gelu, model.config.process.variance, model.config.condition_dropout) == (
        "exact",
        "learned_range",
        0.1,
    )
    assert part.facts.cond.id == "of ckpt_dit_tiny.pth"
    assert not (tmp_path / "run" / "encoder").exists()
    convert("dit", tmp_path / "run", tmp_path / "back.pth", "--back")
    before, after = pretrained.read(original), pretrained.read(tmp_path / "back.pth")
    assert torch.equal(before["model"]["pos_embed"], after["model_ema"].pop("pos_embed"))
    before["model_ema"].pop("pos_embed")  # this file's average is the live network plus 0.01, fixed positions too
    for weights in ("model", "model_ema"):
        equal(before[weights], after[weights])
    assert not all(torch.equal(before["model"][key], before["model_ema"][key]) for key in before["model"])


def test_a_generator_is_conditioned_on_the_representations_of_the_rdm_beside_it(tmp_path):
    found = state("dit_tiny_rep")
    rdm = Part("rdm", {}, Facts(data=Space((12,), id="somewhere")), {"x": torch.zeros(1)})
    checkpoint.save(RunFolder(tmp_path / "run").rdm.checkpoint, rdm)
    torch.save(found, tmp_path / "dit.pth")
    convert("dit", tmp_path / "dit.pth", tmp_path / "run", "--heads", 4)
    part = RunFolder(tmp_path / "run").stage_folder("dit").part()
    assert part.facts.cond.id == "somewhere"


def test_a_generator_works_in_the_latents_of_the_autoencoder_beside_it(tmp_path):
    vq = {f"first_stage_model.{key}": value for key, value in state("ldm_vq_tiny").items()}
    torch.save(vq, tmp_path / "vq.ckpt")
    convert("autoencoder", tmp_path / "vq.ckpt", tmp_path / "run")
    found = state("dit_tiny_rep")
    found["pos_embed"] = sincos_positions(32, 32)[None]  # sides of 64, which this autoencoder has at 256 px
    torch.save(found, tmp_path / "dit.pth")
    convert("dit", tmp_path / "dit.pth", tmp_path / "run", "--heads", 4)
    part = RunFolder(tmp_path / "run").stage_folder("dit").part()
    tokenizer = restore_autoencoder(RunFolder(tmp_path / "run").autoencoder.part())
    assert part.facts.data == tokenizer.space
    assert part.config["autoencoder"]["name"] == "vq"


def test_an_original_dit_is_class_conditional_and_approximates_its_gelu(tmp_path):
    tensors = {key: value for key, value in state("dit_tiny_class").items() if "rep_embedder" not in key}
    torch.save(tensors, tmp_path / "DiT-XL-2.pt")
    convert("dit", tmp_path / "DiT-XL-2.pt", tmp_path / "run", "--heads", 4)
    part = RunFolder(tmp_path / "run").stage_folder("dit-class").part()
    assert (part.config["gelu"], part.facts.cond.vocab) == ("tanh", 10)
    convert("dit", tmp_path / "run", tmp_path / "back.pt", "--back")
    equal(tensors, pretrained.read(tmp_path / "back.pt"))


def by_kind(tensors, heads):
    """Reorder projections to the new attention order: queries of all heads, then their keys, then their values."""
    place = torch.arange(3 * 64).view(heads, 3, -1).permute(1, 0, 2).flatten()
    return {key: value[place] if ".qkv." in key else value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("arm", "arguments"),
    [
        ("rep", {"num_head_channels": 16}),
        ("uncond", {"num_head_channels": -1, "num_heads": 4}),
        ("class", {"num_head_channels": 16, "use_new_attention_order": True}),
    ],
)
def test_an_adm_checkpoint_becomes_a_run_and_goes_back(arm, arguments, tmp_path):
    name = f"adm_unet_tiny_{arm}"
    _, tensors = recorded(name)
    found = by_kind(state(name), 4) if "use_new_attention_order" in arguments else state(name)
    args = argparse.Namespace(image_size=16, **arguments)
    live = {key: value + 1 for key, value in found.items()}
    torch.save({"model": live, "model_ema": found, "epoch": 3, "args": args}, tmp_path / "adm.pth")
    convert("adm", tmp_path / "adm.pth", tmp_path / "run")
    folder = {"rep": "adm", "uncond": "adm-none", "class": "adm-class"}[arm]
    model = restore(RunFolder(tmp_path / "run").stage_folder(folder).part(), GENERATORS)
    cond = {"rep": tensors.get("in/rep"), "uncond": None, "class": tensors.get("in/y")}[arm]
    output = model.network(tensors["in/x"], tensors["in/t"], cond).flatten(1, 2)
    torch.testing.assert_close(output, tensors["out/eps_sigma"], atol=1e-5, rtol=1e-5)
    convert("adm", tmp_path / "run", tmp_path / "back.pth", "--back")
    back = pretrained.read(tmp_path / "back.pth")
    equal(found, back["model_ema"])
    equal(live, back["model"])


def test_an_ldm_checkpoint_becomes_a_run_and_goes_back(tmp_path):
    live = state("ldm_unet_tiny_rep")
    found = _rcg.schedule() | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}
    for key, value in live.items():
        found[ldm.NETWORK + key] = value
        found[_rcg.average_name(ldm.NETWORK + key)] = value + 1
    settings = {"width": 48, "depth": 1, "patch": 8, "input_size": 16, "projector_hidden": 16, "projector_dim": 12}
    encoder = build_encoder(ENCODERS.get("moco_v3").Config(arch="vit_base", **settings), 256, load=False)
    found |= {_encoder.PREFIX + key.removeprefix("trunk."): value for key, value in encoder.state_dict().items()}
    found |= {_rcg.LABELS: torch.randn(5, 12)}
    found |= {ldm.AUTOENCODER + key: value for key, value in state("ldm_vq_tiny").items()}
    torch.save({"model": found, "model_ema": None, "epoch": 0}, tmp_path / "ldm.pth")
    convert("ldm", tmp_path / "ldm.pth", tmp_path / "run", "--head-width", 16, "--encoder-heads", 12)
    part = RunFolder(tmp_path / "run").stage_folder("ldm").part()
    assert part.facts.cond.id.startswith("moco_v3:")
    tokenizer = restore_autoencoder(RunFolder(tmp_path / "run").autoencoder.part())
    assert part.facts.data == tokenizer.space
    assert restore(part, GENERATORS).config.multipliers == (1, 2)
    assert part.config["condition_dropout"] == 0  # LDM never saw a null condition
    convert("ldm", tmp_path / "run", tmp_path / "back.pth", "--back")
    equal(found, pretrained.read(tmp_path / "back.pth")["model"])


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_full_size_dits_fit_by_name_and_shape_and_go_back(size):
    found = listed_tensors(f"dit_DiT-{size}_2")
    width = found["t_embedder.mlp.2.bias"].shape[0]
    network = GENERATORS.get("dit")
    depth = len({key.split(".")[1] for key in found if key.startswith("blocks.")})
    config = network.Config(
        width=width, depth=depth, heads=dit.HEADS[width, depth], process={"variance": "learned_range"}
    )
    with torch.device("meta"):
        model = build(config, network, Space((4, 32, 32)), Space((256,)))
    ours = dit.to_ours(found, dit.condition_of(found))
    assert shapes(ours) == shapes(model.state_dict())
    unused = {"y_embedder.embedding_table.weight": (1, width)}
    assert shapes(dit.to_original(ours, "representation", 2, Space((4, 32, 32)))) | unused == shapes(found)


@pytest.mark.parametrize("arm", ["rep", "uncond"])
def test_full_size_adms_fit_by_name_and_shape_and_go_back(arm):
    found = listed_tensors(f"adm_256_{arm}")
    condition = adm.condition_of(found)
    network, layout = GENERATORS.get("adm"), adm.layout_of(found, {}, Path("adm.pth"))
    side = layout.side
    config = network.Config(**_unet.shape_of(found, side), condition=condition)
    assert (side, config.blocks, config.attention) == (256, 2, (32, 16, 8))
    with torch.device("meta"):
        model = build(config, network, Space((3, side, side)), Space((256,)) if arm == "rep" else None)
    ours = _adm.to_ours(found, layout)
    assert shapes(ours) == shapes(model.network.state_dict())
    assert shapes(_adm.to_original(ours, condition, layout)) == shapes(found)


def guided_diffusion(side, width, multipliers, blocks, classes):
    """List the tensors of guided-diffusion's U-Net at the flags of its README, as tensors without memory."""
    shapes = {"time_embed.0": (4 * width, width), "time_embed.2": (4 * width, 4 * width)}
    found = {"label_emb.weight": (classes, 4 * width)} if classes else {}

    def residual(name, inputs, outputs):
        shapes[f"{name}.in_layers.0"], shapes[f"{name}.in_layers.2"] = (inputs,), (outputs, inputs, 3, 3)
        shapes[f"{name}.emb_layers.1"] = (2 * outputs, 4 * width)
        shapes[f"{name}.out_layers.0"], shapes[f"{name}.out_layers.3"] = (outputs,), (outputs, outputs, 3, 3)
        if inputs != outputs:
            shapes[f"{name}.skip_connection"] = (outputs, inputs, 1, 1)

    def attention(name, channels):
        shapes[f"{name}.norm"], shapes[f"{name}.qkv"] = (channels,), (3 * channels, channels, 1)
        shapes[f"{name}.proj_out"] = (channels, channels, 1)

    widths = [int(width * multiplier) for multiplier in multipliers]
    attends = [side // 2**level in (32, 16, 8) for level in range(len(widths))]
    shapes["input_blocks.0.0"], kept, cell = (widths[0], 3, 3, 3), [widths[0]], 0
    for level, channels in enumerate(widths):
        for block in range(blocks + 1):
            if block == blocks and level == len(widths) - 1:
                continue
            cell += 1
            residual(f"input_blocks.{cell}.0", kept[-1], channels)
            if attends[level] and block < blocks:
                attention(f"input_blocks.{cell}.1", channels)
            kept.append(channels)
    residual("middle_block.0", widths[-1], widths[-1])
    attention("middle_block.1", widths[-1])
    residual("middle_block.2", widths[-1], widths[-1])
    cell, channels = 0, widths[-1]
    for level in reversed(range(len(widths))):
        for block in range(blocks + 1):
            residual(f"output_blocks.{cell}.0", channels + kept.pop(), widths[level])
            channels = widths[level]
            if attends[level]:
                attention(f"output_blocks.{cell}.1", channels)
            if level and block == blocks:
                residual(f"output_blocks.{cell}.{1 + attends[level]}", channels, channels)
            cell += 1
    shapes["out.0"], shapes["out.2"] = (widths[0],), (6, widths[0], 3, 3)
    for name, shape in shapes.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {key: torch.empty(shape, device="meta") for key, shape in found.items()}


PUBLISHED = {
    64: (192, (1, 2, 3, 4), 3, "cosine", 12),
    128: (256, (1, 1, 2, 3, 4), 2, "linear", 4),
    256: (256, (1, 1, 2, 2, 4, 4), 2, "linear", 16),
    512: (256, (0.5, 1, 1, 2, 2, 4, 4), 2, "linear", 16),
}
"""Width, multipliers, blocks, schedule and the heads of the middle block of guided-diffusion's networks."""


def test_the_list_of_guided_diffusions_tensors_is_that_of_a_file():
    width, multipliers, blocks, *_ = PUBLISHED[256]
    assert shapes(guided_diffusion(256, width, multipliers, blocks, 0)) == shapes(listed_tensors("adm_256_uncond"))


@pytest.mark.parametrize("side", PUBLISHED)
def test_every_class_conditional_network_of_guided_diffusion_fits_and_goes_back(side):
    width, multipliers, blocks, schedule, heads = PUBLISHED[side]
    found = guided_diffusion(side, width, multipliers, blocks, 1000)
    layout = adm.layout_of(found, {}, Path("adm.pt"))
    config = adm.config_of(found, layout)
    assert (layout.side, config.blocks, config.attention) == (side, blocks, (32, 16, 8))
    assert (config.process.schedule, config.process.variance) == (schedule, "learned_range")
    assert layout.by_kind == (side == 64)
    assert not list(config.warnings())
    with torch.device("meta"):
        model = build(config, GENERATORS.get("adm"), Space((3, side, side)), Space((), vocab=1000))
    assert model.network.unet.bottleneck[1].attention.heads == heads
    ours = _adm.to_ours(found, layout)
    assert shapes(ours) == shapes(model.network.state_dict())
    assert shapes(_adm.to_original(ours, "class", layout)) == shapes(found)


def test_a_full_size_ldm_fits_by_name_and_shape_and_goes_back():
    found = {
        key.removeprefix(ldm.NETWORK): value
        for key, value in listed_tensors("ldm_repcond").items()
        if key.startswith(ldm.NETWORK)
    }
    network = GENERATORS.get("ldm")
    config = network.Config(**_unet.shape_of(found, 32))
    assert (config.width, config.multipliers, config.attention) == (256, (1, 2, 4), (32, 16, 8))
    with torch.device("meta"):
        model = build(config, network, Space((4, 32, 32)), Space((256,)))
    ours = ldm.to_ours(found)
    assert shapes(ours) == shapes(model.network.state_dict())
    assert shapes(ldm.to_original(ours)) == shapes(found)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("dit", "dit_DiT-S_2"), ("ldm", "ldm_repcond")])
def test_full_size_files_convert_and_go_back(kind, name, tmp_path):
    found = listed_tensors(name, device="cpu")
    content = {"model": found} if kind == "ldm" else {"model": found, "model_ema": found}
    torch.save(content, tmp_path / "full.pth")
    convert(kind, tmp_path / "full.pth", tmp_path / "run")
    convert(kind, tmp_path / "run", tmp_path / "back.pth", "--back")
    assert shapes(pretrained.read(tmp_path / "back.pth")["model"]) == shapes(found)
    shutil.rmtree(tmp_path)  # some gigabytes


def test_mistakes_touch_nothing(tmp_path):
    rdm = DATA / "ckpt_rdm_uncond.pth"
    for kind, error in (("dit", "not a DiT"), ("adm", "not an ADM"), ("ldm", "not an LDM")):
        refused = tool("convert", kind, rdm, tmp_path / "run")
        assert refused.returncode == 2
        assert f"is {error} checkpoint" in refused.stderr
    assert not (tmp_path / "run").exists()
    torch.save(state("adm_unet_tiny_uncond"), tmp_path / "adm.pt")
    assert "does not say how it was trained" in tool("convert", "adm", tmp_path / "adm.pt", tmp_path / "run").stderr
    convert("dit", DATA / "ckpt_dit_tiny.pth", tmp_path / "run", "--heads", 4)
    again = tool("convert", "dit", DATA / "ckpt_dit_tiny.pth", tmp_path / "run")
    assert "is there already" in again.stderr
    assert "must hold one adm" in tool("convert", "adm", tmp_path / "run", tmp_path / "b.pth", "--back").stderr


def test_settings_that_the_original_code_lacks_are_refused(tmp_path):
    convert("dit", DATA / "ckpt_dit_tiny.pth", tmp_path / "run", "--heads", 4)
    stage = RunFolder(tmp_path / "run").stage_folder("dit")
    part = stage.part()
    checkpoint.save(stage.checkpoint, Part(part.kind, part.config | {"rotary": True}, part.facts, part.tensors))
    refused = tool("convert", "dit", tmp_path / "run", tmp_path / "back.pth", "--back")
    assert "has rotary True, which the original code cannot load" in refused.stderr
    assert not (tmp_path / "back.pth").exists()


def test_averaged_weights_replace_missing_live_ones(tmp_path):
    convert("dit", DATA / "ckpt_dit_tiny.pth", tmp_path / "run", "--heads", 4)
    stage = RunFolder(tmp_path / "run").stage_folder("dit")
    assert any(key.startswith(LIVE) for key in load_extra(stage))
    stage.original.unlink()
    convert("dit", tmp_path / "run", tmp_path / "back.pth", "--back")
    back = pretrained.read(tmp_path / "back.pth")
    equal(back["model"], back["model_ema"])
    assert set(back["model"]) == set(pretrained.read(DATA / "ckpt_dit_tiny.pth")["model"])


@pytest.mark.parametrize(
    ("kind", "name", "option"),
    [("dit", "dit_tiny_rep", "--heads"), ("adm", "adm_unet_tiny_rep", "--heads, or their channels as --head-width")],
)
def test_heads_that_nobody_knows_are_asked_for_not_guessed(kind, name, option, tmp_path):
    content = {"model": state(name), "args": argparse.Namespace(image_size=16)}
    torch.save(content, tmp_path / "tiny.pth")
    refused = tool("convert", kind, tmp_path / "tiny.pth", tmp_path / "run")
    assert refused.returncode == 2
    assert f"give them as {option}" in refused.stderr
    assert not (tmp_path / "run").exists()
    convert(kind, tmp_path / "tiny.pth", tmp_path / "run", "--heads", 4)


@pytest.mark.parametrize("heads", [2, 4, 8])
def test_the_heads_that_are_given_are_those_of_the_network(heads, tmp_path):
    _, tensors = recorded("dit_tiny_rep")
    torch.save(state("dit_tiny_rep"), tmp_path / "dit.pth")
    convert("dit", tmp_path / "dit.pth", tmp_path / "run", "--heads", heads)
    model = restore(RunFolder(tmp_path / "run").stage_folder("dit").part(), GENERATORS)
    output = model.network(tensors["in/x"], tensors["in/t"], tensors["in/rep"]).flatten(1, 2)
    assert torch.allclose(output, tensors["out/eps_sigma"], atol=1e-4) == (heads == 4)


def test_an_ldm_and_its_encoder_of_unpublished_sizes_ask_for_heads(tmp_path):
    found = {"model_ema.num_updates": torch.tensor(7), _rcg.LABELS: torch.randn(5, 12)}
    for key, value in state("ldm_unet_tiny_rep").items():
        found |= {ldm.NETWORK + key: value, _rcg.average_name(ldm.NETWORK + key): value}
    torch.save({"model": found}, tmp_path / "ldm.pth")
    assert "as --head-width" in tool("convert", "ldm", tmp_path / "ldm.pth", tmp_path / "run").stderr
    settings = {"width": 48, "depth": 1, "patch": 8, "input_size": 16, "projector_hidden": 16, "projector_dim": 12}
    encoder = build_encoder(ENCODERS.get("moco_v3").Config(arch="vit_base", **settings), 256, load=False)
    found |= {_encoder.PREFIX + key.removeprefix("trunk."): value for key, value in encoder.state_dict().items()}
    torch.save({"model": found}, tmp_path / "ldm.pth")
    refused = tool("convert", "ldm", tmp_path / "ldm.pth", tmp_path / "run", "--head-width", 16)
    assert "width 48 with 1 blocks, which was not published" in refused.stderr
    assert "as --encoder-heads" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--heads", "--head-width", "--name"])
def test_an_option_that_says_nothing_about_a_kind_is_refused(option, tmp_path):
    refused = tool("convert", "rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run", option, 4)
    assert refused.returncode == 2
    assert f"{option} 4" in refused.stderr
    assert "leave it out" in refused.stderr


@pytest.mark.parametrize("average", ["model_ema", "ema"])
@pytest.mark.parametrize("kind", ["dit", "adm"])
def test_a_file_with_the_average_alone_is_read(kind, average, tmp_path):
    name = {"dit": "dit_tiny_rep", "adm": "adm_unet_tiny_rep"}[kind]
    torch.save({average: state(name), "args": argparse.Namespace(image_size=16)}, tmp_path / "ema.pth")
    convert(kind, tmp_path / "ema.pth", tmp_path / "run", "--heads", 4)
    torch.save({average: {}}, tmp_path / "empty.pth")
    assert "holds no weights" in tool("convert", kind, tmp_path / "empty.pth", tmp_path / "other").stderr


def edit(stage, **changes):
    """Change settings of a part, given by dotted keys."""
    part = stage.part()
    for dotted, value in changes.items():
        section, (*path, key) = part.config, dotted.split("__")
        for name in path:
            section = section[name]
        section[key] = value
    checkpoint.save(stage.checkpoint, part)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process__predict": "v"}, "process.predict v"),
        ({"process__schedule": "cosine"}, "process.schedule cosine"),
        ({"process__steps": 500}, "process.steps 500"),
        ({"process": {"name": "flow"}}, "process.name flow"),
        ({"self_condition": True}, "self_condition True"),
    ],
)
@pytest.mark.parametrize("kind", ["rdm", "dit"])
def test_a_model_that_the_original_code_would_take_for_another_does_not_go_back(kind, changes, said, tmp_path):
    run = RunFolder(tmp_path / "run")
    if kind == "dit":
        convert("dit", DATA / "ckpt_dit_tiny.pth", run.path, "--heads", 4)
    else:
        convert("rdm", DATA / "ckpt_rdm_uncond.pth", run.path)
    edit(run.stage_folder(kind), **changes)
    refused = tool("convert", kind, run.path, tmp_path / "back.pth", "--back")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "back.pth").exists()


def test_an_encoder_that_the_original_code_does_not_know_stays_behind(tmp_path):
    run = RunFolder(tmp_path / "run")
    convert("rdm", DATA / "ckpt_rdm_uncond.pth", run.path)
    checkpoint.save(run.encoder.checkpoint, make_part("encoder", "moco_v3"))
    refused = tool("convert", "rdm", run.path, tmp_path / "back.pth", "--back")
    assert refused.returncode == 2
    assert "is a moco_v3 resnet18 with feature projector" in refused.stderr
