"""Two processes with half of the batch each end with the weights of one process with the whole batch."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rcg.config import TrainConfig
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.pipeline import Pipeline
from tests.toy import KL, ROOT, process, write

PROGRAM = """
import sys
import torch
from rcg.config import TrainConfig
from rcg.core.checkpoint import Facts
from rcg.core.contracts import EvalResult, Space, Task
from rcg.core.registry import GENERATORS, NETWORKS
from rcg.data.loading import TensorDataset
from rcg.diffusion.model import build, model_part
from rcg.distributed.fsdp import full_tensor, local_tensor
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import StageFolder
from rcg.training.loop import train
from safetensors.torch import save_file
from pathlib import Path

(kind, process), accumulate = sys.argv[1].split("-"), int(sys.argv[2])
folder, steps, optimizer = Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
torch.manual_seed(0)
shape, cond = ((12,), None) if kind == "rep_mlp" else ((3, 8, 8), Space((6,)))
exits = {} if process == "meanflow" else {"early_exit": {"block": 1}}
registry = NETWORKS if kind == "rep_mlp" else GENERATORS
small = {
    "rep_mlp": {"width": 32, "depth": 2},
    "dit": {"width": 32, "depth": 3, "heads": 2, "patch": 4, "grad_checkpointing": True,
            "value_residual": True, "routing": {"first": 2, "last": 2}, **exits},
    "adm": {"width": 64, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
}[kind]
network = registry.get(kind)
model = build(network.Config(process=process, **small), network, Space(shape), cond)
for p in model.parameters():  # zero-initialized layers would hide errors of the first steps
    torch.nn.init.normal_(p, std=0.05)


class Modeling(Task):

    def __init__(self):
        self.modules = {"model": model}
        g = torch.Generator().manual_seed(1)
        n = 100
        self.data = TensorDataset({
            "x": torch.randn(n, *shape, generator=g), "cond": torch.randn(n, 6, generator=g),
        })

    def losses(self, batch, step):
        yield "model", self.modules["model"](batch["x"], batch["cond"] if cond else None)

    def after_step(self, step):
        if step == steps - 1:  # later there is nobody left to gather shards from
            self.live = {k: full_tensor(v).contiguous() for k, v in self.modules["model"].state_dict().items()}

    def evaluate(self, models, step):
        return EvalResult({}, {})

    def export(self, models):
        return model_part("rdm", models["model"], Facts())


config = TrainConfig(steps=steps, batch_size=24, grad_accum_steps=accumulate, lr=1e-3, grad_clip=1.0, ema_decay=0.9,
                     precision="no", tracker="none", weight_decay=0.01, optimizer=optimizer)
accelerator = launch(config, folder, shardable=True)
task = Modeling()
train(task, config, StageFolder(folder), accelerator, seed=3, num_workers=0)
parameters = list(task.modules["model"].parameters())
share = sum(local_tensor(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
if accelerator.is_main_process:
    save_file({k.removeprefix("module."): v for k, v in task.live.items()}, folder / "live.safetensors")
    print("processes", accelerator.num_processes, f"share {share:.1f}")
accelerator.end_training()
"""


ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ONE = [sys.executable]
TWO = [*ONE, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SHARDED = [
    *ONE,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(ROOT / "configs" / "accelerate" / "fsdp.yaml"),
]
SHARDED += ["--num_processes", "2", "--main_process_port", "0"]


def run(kind, launcher, accumulate, folder, steps=20, optimizer="adamw"):
    folder.mkdir(exist_ok=True)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [*launcher, str(program), kind, str(accumulate), str(folder), str(steps), optimizer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = (
        "processes 1 share 1.0" if launcher == ONE else f"processes 2 share {0.5 if launcher == SHARDED else 1.0}"
    )
    assert expected in done.stdout
    return {
        **load_file(folder / "live.safetensors"),
        **{f"ema.{k}": v for k, v in load_file(folder / "model.safetensors").items()},
    }


def difference(one, other):
    """Return the largest difference of any weight."""
    assert other.keys() == one.keys()
    return max((other[name].double() - one[name].double()).abs().max().item() for name in one)


STAGES = """
import sys
from rcg.cli import train_stage
from rcg.config import load_experiment
from rcg.distributed.launch import launch, leave
from rcg.encoding.run_folder import Mode
from rcg.training.stages import STAGES

for name in sys.argv[2:] or STAGES:
    name, *overrides = name.split()
    train_stage(STAGES[name], load_experiment(sys.argv[1], overrides), Mode.START)
print("trained by", launch().num_processes)
leave()
"""
AUTOENCODER = KL | {
    "attention": [],
    "train": {
        "steps": 6,
        "batch_size": 8,
        "grad_accum_steps": 2,
        "adversarial_start": 3,
        "perceptual": "none",
        "discriminator_width": 8,
        "precision": "no",
        "tracker": "none",
    },
}


RAE = {"name": "rae", "width": 16, "depth": 1, "heads": 2}
RAE |= {"train": AUTOENCODER["train"] | {"decoder_noise": 0.5, "perceptual": "encoder"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("autoencoder", "patch"), [pytest.param(AUTOENCODER, 2, id="kl"), pytest.param(RAE, 1, id="rae")]
)
def test_all_four_stages_end_on_two_processes_where_they_do_on_one(tmp_path, autoencoder, patch):
    (tmp_path / "stages.py").write_text(STAGES)
    stages, runs = ("encoder", "autoencoder", "rdm", "generator"), []
    for count, launcher in ((1, ONE), (2, TWO)):
        folder = tmp_path / str(count)
        folder.mkdir()
        path = write(
            folder,
            data__limit=100,
            encoder__train__lr=1e-4,
            rdm__condition="class",
            rdm__self_condition=True,
            generator__autoencoder=autoencoder,
            generator__patch=patch,
            generator__condition_dropout=0.3,
            generator__condition_noise=0.3,
        )
        joint = "generator generator.condition=none generator.joint_representation=true"
        command = [*launcher, str(tmp_path / "stages.py"), str(path), *stages, joint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"trained by {count}" in done.stdout
        runs.append(RunFolder(folder / "run"))
    for stage in ("encoder", "autoencoder", "rdm", "dit", "dit-joint"):
        one, two = (run.stage_folder(stage).part() for run in runs)
        for part in (one, two):
            # Attention does not depend on the bias of keys: its gradient is rounding, which AdamW makes large.
            for name in [name for name in part.tensors if name.endswith("attn.qkv.bias")]:
                part.tensors[name].chunk(3)[1].zero_()
        assert difference(one.tensors, two.tensors) < 1e-5, stage
        assert one.facts.step > 0


JUDGE = "{name: moco_v3, arch: resnet18, width: 4, depth: 1, feature: backbone, weights: none}"
"""An encoder for the perceptual loss."""
SEMANTIC = {"name": "semantic", "width": 16, "multipliers": [1, 2], "blocks": 1, "dim": 8, "train": {"precision": "no"}}


@pytest.mark.slow
def test_an_encoder_and_its_generator_end_on_two_processes_where_they_do_on_one(tmp_path):
    (tmp_path / "stages.py").write_text(STAGES)
    runs = []
    for count, launcher in ((1, ONE), (2, TWO)):
        folder = tmp_path / str(count)
        folder.mkdir()
        changes = {"generator__condition_dropout": 0.3, "generator__condition_noise": 0.3}
        changes |= {"generator__perceptual__encoder": JUDGE, "rdm__train__tracker": "none"}
        path = write(folder, data__limit=100, encoder=SEMANTIC, **changes)
        command = [*launcher, str(tmp_path / "stages.py"), str(path), "generator", "rdm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"trained by {count}" in done.stdout
        runs.append(RunFolder(folder / "run"))
    for stage in ("encoder", "dit"):
        one, two = (run.stage_folder(stage).part() for run in runs)
        assert difference(one.tensors, two.tensors) < 1e-5, stage
        assert one.facts.step == 20


SHARING = """
import sys, torch
from pathlib import Path
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config
from rcg.encoding import cache
from rcg.distributed.launch import launch
from rcg.data.images import load_images
from rcg.data.datasets.digits import DigitsConfig
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform

cache.SHARD_SIZE = 16
accelerator = launch()
torch.manual_seed(0)
config = MoCoV3Config(arch="resnet18", width=4, depth=1, projector_hidden=8, projector_dim=6)
encoder = Representation(MoCoV3(config, 16), Transform("per_sample"))
encoded, encode = [], encoder.encode
encoder.encode = lambda image: encoded.append(len(image)) or encode(image)
images = load_images(DigitsConfig(limit=90)).train
cached = cache.representation_cache(images, encoder, 1, Path(sys.argv[1]), "train")
views = cached.fill(encoder.encode, accelerator)
total = views.rows(range(len(views)), [0] * len(views)).double().sum().item()
print(f"rank {accelerator.process_index} of {accelerator.num_processes} encoded {sum(encoded)} sum {total:.6f}")
accelerator.end_training()
"""


def test_two_processes_share_the_shards_of_a_cache(tmp_path):
    program = tmp_path / "sharing.py"
    program.write_text(SHARING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(program), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = sorted(re.findall(r"rank (\d) of (\d) encoded (\d+) sum (-?[\d.]+)", done.stdout))
    assert [line[:3] for line in lines] == [("0", "2", "47"), ("1", "2", "32")]
    assert lines[0][3] == lines[1][3], "both read all of it"


def test_two_processes_with_micro_batches_end_where_one_without_does(tmp_path):
    one = run("dit-meanflow", ONE, 1, tmp_path / "one")
    two = run("dit-meanflow", TWO, 3, tmp_path / "accumulated")
    assert difference(one, two) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer", "largest"),
    [
        ("rep_mlp-gaussian", "adamw", 1e-5),
        ("dit-gaussian", "adamw", 1e-5),
        ("adm-gaussian", "adamw", 1e-5),
        ("dit-meanflow", "adamw", 1e-5),
        ("dit-gaussian", "muon", 1e-3),  # its products are rounded to bf16; twenty steps lead 4e-3 away
    ],
)
def test_two_processes_with_half_of_the_weights_each_end_where_one_does(kind, optimizer, largest, tmp_path):
    one = run(kind, ONE, 1, tmp_path / "one", optimizer=optimizer)
    run(kind, SHARDED, 3, tmp_path / "sharded", steps=8, optimizer=optimizer)
    resumed = run(kind, SHARDED, 3, tmp_path / "sharded", optimizer=optimizer)
    assert difference(one, resumed) < largest


@pytest.mark.slow
def test_a_generator_is_trained_in_shards_by_its_tool_and_goes_on_without_them(tmp_path):
    path = write(tmp_path, generator__condition="none", generator__train__precision="bf16")
    command = [*SHARDED, str(ROOT / "tools" / "train_pixel.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stage = StageFolder(tmp_path / "run" / "dit-none")
    assert stage.part().facts.step == 20
    assert len(list(stage.samples.iterdir())) == 1
    assert Pipeline.from_pretrained(tmp_path / "run").generate(range(2)).images.shape == (2, 3, 16, 16)
    # In a process of its own: this one may have an accelerator of another precision already.
    done = process("train_pixel", path, "generator.train.steps=22", "--resume")
    assert done.returncode == 0, done.stderr
    assert stage.part().facts.step == 22


@pytest.mark.parametrize(
    ("environment", "train", "shardable", "sentence"),
    [
        ({}, {}, True, "set fsdp_version: 2"),
        ({"VERSION": "2"}, {"compile": True}, True, "set train.compile=false"),
        ({"VERSION": "2"}, {}, False, "encoders and autoencoders are trained without it"),
    ],
)
def test_impossible_sharding_is_refused(environment, train, shardable, sentence, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key, value in environment.items():
        monkeypatch.setenv(f"FSDP_{key}", value)
    with pytest.raises(UserError, match=sentence):
        launch(TrainConfig(precision="no", tracker="none", **train), shardable=shardable)


RECONSTRUCTING = """
import sys, torch
from pathlib import Path
from rcg.config import AutoencoderTrain
from rcg.core.checkpoint import Facts
from rcg.core.contracts import Space
from rcg.diffusion.alignment import AlignmentHead
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import StageFolder
from rcg.data.images import load_images
from rcg.data.datasets.digits import DigitsConfig
from rcg.core.registry import AUTOENCODERS
from rcg.training.tasks.autoencoder import Comparisons, AutoencoderTask
from rcg.training.loop import train

class Colors(torch.nn.Module):

    def patch_features(self, image):
        return torch.nn.functional.avg_pool2d(image - 0.5, 4).flatten(2).transpose(1, 2)


folder = Path(sys.argv[1])
torch.manual_seed(0)
build = AUTOENCODERS.get("vqgan")
small = {"width": 32, "multipliers": [1, 1], "blocks": 1, "channels": 4}
model = build(build.Config(**small, quantizer={"codes": 16, "decay": 0.8}), 16)
images, validation = load_images(DigitsConfig(image_size=16, limit=100))
config = AutoencoderTrain(steps=4, batch_size=8, grad_accum_steps=2, lr=1e-4, ema_decay=0.9, perceptual="none",
                          adversarial_start=2, discriminator_width=8, precision="no", tracker="none",
                          decoder_noise=0.3, align={})
accelerator = launch(config, folder)
head = AlignmentHead(config.align, 4, Space((4, 4, 3)))
task = AutoencoderTask(model, images, validation, config, Comparisons(None, {}), Facts(), head, Colors())
train(task, config, StageFolder(folder), accelerator, seed=3, num_workers=0)
if accelerator.is_main_process:
    print("processes", accelerator.num_processes)
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_an_autoencoder_and_its_codebook_as_one_does(tmp_path):
    (tmp_path / "program.py").write_text(RECONSTRUCTING)
    weights = []
    for processes in ("1", "2"):
        (tmp_path / processes / "autoencoder").mkdir(parents=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command = [*launch, str(tmp_path / "program.py"), str(tmp_path / processes / "autoencoder")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"processes {processes}" in done.stdout
        weights.append(StageFolder(tmp_path / processes / "autoencoder").part().tensors)
    one, two = weights
    # Adam makes whole steps of rounding errors where a gradient is near zero: at a low rate these stay small.
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert two["quantize.counts"].sum() > 16
