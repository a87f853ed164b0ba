"""Diffusion Autoencoders (Preechakul et al., CVPR 2022) as their files hold them: names, shapes, and what they compute.

Functions of tensors by their original names; nothing here is the package's.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

GROUPS = 32


class Callback:
    """What Lightning saves beside the weights names classes of other programs."""


class Sizes(NamedTuple):
    """What decides the shapes; attention is at a side of 16 and in the middle."""

    side: int = 32
    width: int = 32
    multipliers: tuple = (1, 2)
    encoder_multipliers: tuple = (1, 2, 1)
    blocks: int = 1
    encoder_blocks: int = 2
    embedding: int = 48
    z: int = 12
    """Features of a representation; 0: there is no encoder, and no condition."""
    hidden: int = 20
    layers: int = 3
    heads: int = 1
    sinusoids: int = 64
    """Of the latent network."""


def checkpoint(sizes, latent=True, statistics=True, seed=0, **hyper_parameters):
    """Return what a training writes: the live network and its average, noise for samples, and the settings."""
    generator = torch.Generator().manual_seed(seed)
    listed = network_shapes(sizes, latent)

    def draw(shape, name=""):
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 16
        values = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        if name.startswith(("out.2", f"latent_net.layers.{sizes.layers - 1}.")):
            values = 0.1 * values  # with large predictions, rounding errors grow along a walk
        return 1 + values if name.endswith(("norm.weight", "layers.0.weight", "out.0.weight")) else values

    found = {}
    for prefix in ("model.", "ema_model."):
        drawn = {name: draw(shape, name) for name, shape in listed.items()}
        found |= {prefix + name: value for name, value in with_twins(drawn).items()}
    found["x_T"] = draw((2, 3, sizes.side, sizes.side))
    if latent and statistics:
        found["conds_mean"], found["conds_std"] = draw((1, sizes.z)), draw((1, sizes.z)).abs() + 0.5
    return {
        "epoch": 3,
        "global_step": 70,
        "pytorch-lightning_version": "1.4.5",
        "state_dict": found,
        "callbacks": {Callback: {"best_model_path": "last.ckpt"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"img_size": sizes.side, "net_beatgans_attn_head": sizes.heads} | hyper_parameters,
    }


def with_twins(named):
    """Add the second name under which the layer of the time of a latent network is saved."""
    return named | {name.replace("linear_emb", "cond_layers.1"): named[name] for name in named if "linear_emb" in name}


def network(content, average=True):
    """Return the tensors of the averaged or the live network without their prefix."""
    prefix = "ema_model." if average else "model."
    tensors = content["state_dict"]
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def network_shapes(sizes, latent=True):
    """List the tensors of an autoencoder, and of its latent network, by name and shape."""
    width, embedding = sizes.width, sizes.embedding
    time = time_embedding(sizes)
    weights = {f"{time}.0": (embedding, width), f"{time}.2": (embedding, embedding)}

    def residual(name, inputs, outputs, conditioned):
        weights[f"{name}.in_layers.0"], weights[f"{name}.in_layers.2"] = (inputs,), (outputs, inputs, 3, 3)
        if conditioned:
            weights[f"{name}.emb_layers.1"] = (2 * outputs, embedding)
            if sizes.z:
                weights[f"{name}.cond_emb_layers.1"] = (outputs, sizes.z)
            weights[f"{name}.out_layers.0"], weights[f"{name}.out_layers.3"] = (outputs,), (outputs, outputs, 3, 3)
        if inputs != outputs:
            weights[f"{name}.skip_connection"] = (outputs, inputs, 1, 1)

    def attention(name, channels):
        weights[f"{name}.norm"], weights[f"{name}.qkv"] = (channels,), (3 * channels, channels, 1)
        weights[f"{name}.proj_out"] = (channels, channels, 1)

    def down_and_middle(prefix, multipliers, blocks, conditioned):
        weights[f"{prefix}input_blocks.0.0"], kept = (width, 3, 3, 3), [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                cell = f"{prefix}input_blocks.{len(kept)}"
                residual(f"{cell}.0", kept[-1], width * multiplier, conditioned)
                if sizes.side // 2**level == 16:
                    attention(f"{cell}.1", width * multiplier)
                kept.append(width * multiplier)
            if level < len(multipliers) - 1:
                residual(f"{prefix}input_blocks.{len(kept)}.0", kept[-1], kept[-1], conditioned)
                kept.append(kept[-1])
        residual(f"{prefix}middle_block.0", kept[-1], kept[-1], conditioned)
        attention(f"{prefix}middle_block.1", kept[-1])
        residual(f"{prefix}middle_block.2", kept[-1], kept[-1], conditioned)
        return kept

    kept = down_and_middle("", sizes.multipliers, sizes.blocks, conditioned=True)
    cell, channels = 0, kept[-1]
    for level in reversed(range(len(sizes.multipliers))):
        outputs = width * sizes.multipliers[level]
        for block in range(sizes.blocks + 1):
            residual(f"output_blocks.{cell}.0", channels + kept.pop(), outputs, True)
            attends = sizes.side // 2**level == 16
            if attends:
                attention(f"output_blocks.{cell}.1", outputs)
            if level and block == sizes.blocks:
                residual(f"output_blocks.{cell}.{1 + attends}", outputs, outputs, True)
            cell, channels = cell + 1, outputs
    weights["out.0"], weights["out.2"] = (channels,), (3, channels, 3, 3)
    if sizes.z:
        channels = down_and_middle("encoder.", sizes.encoder_multipliers, sizes.encoder_blocks, conditioned=False)[-1]
        weights["encoder.out.0"], weights["encoder.out.3"] = (channels,), (sizes.z, channels, 1, 1)
    if latent:
        weights["latent_net.time_embed.0"] = (sizes.z, sizes.sinusoids)
        weights["latent_net.time_embed.2"] = (sizes.z, sizes.z)
        for layer in range(sizes.layers):
            name, is_last = f"latent_net.layers.{layer}", layer == sizes.layers - 1
            inputs = sizes.z if layer == 0 else sizes.hidden + sizes.z
            weights[f"{name}.linear"] = (sizes.z if is_last else sizes.hidden, inputs)
            if not is_last:
                weights[f"{name}.linear_emb"], weights[f"{name}.norm"] = (sizes.hidden, sizes.z), (sizes.hidden,)
    return {f"{name}.weight": shape for name, shape in weights.items()} | {
        f"{name}.bias": shape[:1] for name, shape in weights.items()
    }


def time_embedding(sizes):
    """Return the name of the embedding of the time."""
    return "time_embed.time_embed" if sizes.z else "time_embed"


def encode(tensors, sizes, image):
    """Map images `(B, 3, S, S)` in [-1, 1] to z `(B, D)`."""
    below = Layers(tensors, "encoder.", sizes.heads)
    h = below.down_and_middle(image, sizes.side, sizes.encoder_multipliers, sizes.encoder_blocks)[-1]
    pooled = F.silu(below.norm("out.0", h)).mean((2, 3), keepdim=True)
    return below.conv("out.3", pooled).flatten(1)


def denoise(tensors, sizes, x, t, z=None):
    """Predict the noise in `x` `(B, 3, S, S)` at times `t` `(B,)`, given z `(B, D)`, if there is an encoder."""
    net, time = Layers(tensors, "", sizes.heads), time_embedding(sizes)
    net.time, net.z = net.linear(f"{time}.2", F.silu(net.linear(f"{time}.0", sinusoids(t, sizes.width)))), z
    *kept, h = net.down_and_middle(x, sizes.side, sizes.multipliers, sizes.blocks)
    side, cell = sizes.side // 2 ** (len(sizes.multipliers) - 1), 0
    for level in reversed(range(len(sizes.multipliers))):
        for block in range(sizes.blocks + 1):
            h = net.residual(f"output_blocks.{cell}.0", torch.cat([h, kept.pop()], dim=1))
            if side == 16:
                h = net.attention(f"output_blocks.{cell}.1", h)
            if level and block == sizes.blocks:
                place = 2 if side == 16 else 1
                h, side = net.residual(f"output_blocks.{cell}.{place}", h, twice), 2 * side
            cell += 1
    return net.conv("out.2", F.silu(net.norm("out.0", h)))


def denoise_latent(tensors, sizes, x, t):
    """Predict the noise in normalized z `(B, D)` at times `t` `(B,)`."""
    net = Layers(tensors, "latent_net.", sizes.heads)
    time = net.linear("time_embed.2", F.silu(net.linear("time_embed.0", sinusoids(t, sizes.sinusoids))))
    h = x
    for layer in range(sizes.layers):
        name = f"layers.{layer}"
        h = net.linear(f"{name}.linear", torch.cat([h, x], dim=1) if layer else x)
        if layer < sizes.layers - 1:
            h = h * (1 + net.linear(f"{name}.linear_emb", F.silu(time)))
            h = F.silu(F.layer_norm(h, h.shape[1:], net[f"{name}.norm.weight"], net[f"{name}.norm.bias"]))
    return h


def walk(predict, x, betas, steps, clip):
    """Walk from noise `x` to clean data by DDIM without fresh noise, at every (T / steps)-th of T levels."""
    alpha_bar = torch.cumprod(1 - betas.double(), dim=0)
    times = list(range(0, len(betas), len(betas) // steps))
    for place in reversed(range(steps)):
        here = alpha_bar[times[place]].float()
        there = alpha_bar[times[place - 1]].float() if place else torch.tensor(1.0)
        eps = predict(x, torch.full((len(x),), times[place]))
        clean = (x - (1 - here).sqrt() * eps) / here.sqrt()
        if clip:
            clean = clean.clamp(-1, 1)
            eps = (x - here.sqrt() * clean) / (1 - here).sqrt()
        x = there.sqrt() * clean + (1 - there).sqrt() * eps
    return x


class Layers:
    """The layers of a network whose tensors have a common prefix."""

    def __init__(self, tensors, prefix, heads):
        self.tensors, self.prefix, self.heads = tensors, prefix, heads
        self.time = self.z = None

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def linear(self, name, x):
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def conv(self, name, x):
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        return F.group_norm(x, GROUPS, self[f"{name}.weight"], self[f"{name}.bias"])

    def residual(self, name, x, resample=lambda x: x):
        """Equation 7: the time scales and shifts what is normalized, z scales it again; without a time, one layer."""
        h = self.conv(f"{name}.in_layers.2", resample(F.silu(self.norm(f"{name}.in_layers.0", x))))
        if self.time is not None:
            scale, shift = self.linear(f"{name}.emb_layers.1", F.silu(self.time))[..., None, None].chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
            if self.z is not None:
                h = h * (1 + self.linear(f"{name}.cond_emb_layers.1", F.silu(self.z))[..., None, None])
            h = self.conv(f"{name}.out_layers.3", F.silu(h))
        changes = f"{self.prefix}{name}.skip_connection.weight" in self.tensors
        return h + (self.conv(f"{name}.skip_connection", resample(x)) if changes else resample(x))

    def attention(self, name, x):
        """Rows of the projection: head after head, and in each the queries, the keys and the values."""
        weight, bias = self[f"{name}.qkv.weight"][..., 0], self[f"{name}.qkv.bias"]
        tokens = self.norm(f"{name}.norm", x).flatten(2).transpose(1, 2)
        q, k, v = F.linear(tokens, weight, bias).unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        shares = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = (shares @ v).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self[f"{name}.proj_out.weight"][..., 0], self[f"{name}.proj_out.bias"])
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])

    def down_and_middle(self, x, side, multipliers, blocks):
        """Return the outputs of all cells on the way down, and of the middle."""
        outputs = [self.conv("input_blocks.0.0", x)]
        for level in range(len(multipliers)):
            for _ in range(blocks):
                cell = f"input_blocks.{len(outputs)}"
                h = self.residual(f"{cell}.0", outputs[-1])
                outputs.append(self.attention(f"{cell}.1", h) if side == 16 else h)
            if level < len(multipliers) - 1:
                half = self.residual(f"input_blocks.{len(outputs)}.0", outputs[-1], lambda x: F.avg_pool2d(x, 2))
                outputs, side = [*outputs, half], side // 2
        h = self.attention("middle_block.1", self.residual("middle_block.0", outputs[-1]))
        return [*outputs, self.residual("middle_block.2", h)]


def twice(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def sinusoids(t, width):
    frequencies = 10_000 ** (-torch.arange(width // 2) / (width // 2))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
