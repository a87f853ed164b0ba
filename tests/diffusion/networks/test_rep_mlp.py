"""The residual MLP against the published RDM: single forwards and whole trajectories."""

import pytest
import torch

from rcg.core.contracts import Interface, Space
from rcg.diffusion.model import build
from rcg.diffusion.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.diffusion.samplers.ddim import DDIM
from rcg.generators.published.rdm import NETWORK, average_name, our_name
from tests.ideal import RecordedNoise
from tests.parity import normal, recorded, state


def published(arm, averaged):
    """Build the recorded RDM in our names."""
    about, _ = recorded(f"rdm_mlp_{arm}")
    config = about["config"]["unet_config"]["params"]
    labels = about["config"]["cond_stage_config"]["params"]
    conditional = arm == "classcond"
    ours = RepMLPConfig(
        width=config["model_channels"],
        depth=config["num_res_blocks"],
        time_width=config["time_embed_dim"],
        label_width=labels["embed_dim"],
        condition="class" if conditional else "none",
        process={"name": "gaussian", "schedule": "sqrt_linear", "predict": "x0"},
    )
    model = build(ours, RepMLP, Space((32,)), Space((), vocab=labels["n_classes"]) if conditional else None)
    tensors = {}
    weights = state(f"rdm_mlp_{arm}")
    for key, value in weights.items():
        if key.startswith(NETWORK):
            tensors[our_name(key)] = value + 0.02 * normal(average_name(key), value.shape) if averaged else value
    if conditional:
        table = weights["cond_stage_model.embedding.weight"]
        tensors["network.label.embed.weight"] = torch.cat([table, torch.zeros(1, table.shape[1])])
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.parametrize("arm", ["uncond", "classcond"])
def test_forward_and_loss_equal_the_published_ones(arm, monkeypatch):
    _, tensors = recorded(f"rdm_mlp_{arm}")
    x0, t, labels = tensors["in/x0"], tensors["in/t"], tensors["in/y"]
    model = published(arm, averaged=False)
    cond = labels if arm == "classcond" else None
    x_t = model.process.corrupt(x0, t, tensors["in/noise"])
    torch.testing.assert_close(x_t, tensors["out/x_t"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.network(x_t, t, cond)[:, 0], tensors["out/pred_x0"], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(model.process, "draw", lambda x: (t, tensors["in/noise"]))
    loss = model.process.loss(model.network, x0, cond)["mse"]
    torch.testing.assert_close(loss, tensors["out/loss"].reshape(()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arm", ["uncond", "classcond"])
def test_averaged_weights_and_a_batch_of_one_equal_the_published_ones(arm):
    _, tensors = recorded(f"rdm_mlp_{arm}")
    model = published(arm, averaged=True)
    cond = tensors["in/y"] if arm == "classcond" else None
    x, t = tensors["out/x_t"], tensors["in/t"]
    torch.testing.assert_close(model.network(x, t, cond)[:, 0], tensors["out/pred_x0_ema"], atol=1e-5, rtol=1e-5)
    one = model.network(x[:1], t[:1], None if cond is None else cond[:1])[:, 0]
    torch.testing.assert_close(one, tensors["out/pred_x0_ema_batch1"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arm", "steps", "eta"),
    [
        ("uncond", 5, 0),
        ("uncond", 5, 1),
        ("uncond", 250, 1),
        ("classcond", 5, 0),
        ("classcond", 5, 1),
        ("classcond", 250, 1),
    ],
)
def test_whole_trajectories_equal_the_published_ones(arm, steps, eta):
    _, tensors = recorded(f"rdm_ddim_{arm}_S{steps}_eta{eta}")
    model = published(arm, averaged=True)
    noise = RecordedNoise([tensors["in/x_T"], *tensors["aux/step_noise"]])
    cond = tensors["in/y"] if arm == "classcond" else None
    sampler = DDIM(steps=steps, eta=eta, spacing="rcg")
    with torch.no_grad():
        sample = sampler(model.process, model.network, model.data, cond, noise)
    torch.testing.assert_close(sample, tensors["out/sample"], atol=1e-4, rtol=1e-4)


def test_the_paper_sized_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = RepMLP(RepMLPConfig(), Interface(Space((256,))))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(62.72e6, rel=1e-3)
