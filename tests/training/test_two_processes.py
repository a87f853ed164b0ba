"""Two processes with half of the batch each end with the weights of one process with the whole batch."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rcg.config import TrainConfig
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.distributed import launch as parallel
from rcg.pipeline import Pipeline
from tests.toy import ROOT, tool, write

PROGRAM = '''
import sys
import torch
from rcg.distributed import launch as parallel
from rcg.config import TrainConfig
from rcg.core.contracts import Space
from rcg.data.loading import Vectors
from rcg.diffusion.model import build
from rcg.diffusion.processes.gaussian import Draws
from rcg.core.registry import GENERATORS, NETWORKS
from rcg.distributed.fsdp import shard, whole
from rcg.training.loop import train
from safetensors.torch import save_file
from pathlib import Path

kind, accumulate, folder, steps = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
shape, cond = ((12,), None) if kind == "rep_mlp" else ((3, 8, 8), Space((6,)))
registry = NETWORKS if kind == "rep_mlp" else GENERATORS
small = {
    "rep_mlp": {"width": 32, "depth": 2},
    "dit": {"width": 32, "depth": 2, "heads": 2, "patch": 4, "grad_checkpointing": True},
    "adm": {"width": 64, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
}[kind]
network = registry.get(kind)
model = build(network.Config(**small), network, Space(shape), cond)
for p in model.parameters():  # zero-initialized layers would hide errors of the first steps
    torch.nn.init.normal_(p, std=0.05)


class Fed:
    """A task whose draws come with the data, so that they do not depend on which process sees a sample."""

    def __init__(self):
        self.modules = {"model": model}
        g = torch.Generator().manual_seed(1)
        n = 100
        self.data = Vectors({
            "x": torch.randn(n, *shape, generator=g), "noise": torch.randn(n, *shape, generator=g),
            "t": torch.randint(1000, (n,), generator=g), "cond": torch.randn(n, 6, generator=g),
            "dropped": torch.rand(n, generator=g) < 0.3,
        })

    def losses(self, batch, step):
        model.process.draw = lambda x: Draws(batch["t"], batch["noise"])
        model.dropped = lambda c: batch["dropped"]
        yield "model", self.modules["model"](batch["x"], batch["cond"] if cond else None)

    def after_step(self, step):
        if step == steps - 1:  # later there is nobody left to gather shards from
            self.live = {k: whole(v).contiguous() for k, v in self.modules["model"].state_dict().items()}

    def evaluate(self, models, step):
        from rcg.core.contracts import Report
        return Report({}, {})

    def export(self, models):
        from rcg.training.tasks.rdm import model_part
        return model_part("rdm", models["model"], {})


config = TrainConfig(steps=steps, batch_size=24, grad_accum_steps=accumulate, lr=1e-3, grad_clip=1.0, ema_decay=0.9, precision="no",
                     tracker="none", weight_decay=0.01)
accelerator = parallel.start(config, folder, shardable=True)
task = Fed()
train(task, config, folder, accelerator, seed=3, workers=0)
parameters = list(task.modules["model"].parameters())
held = sum(shard(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
if accelerator.is_main_process:
    save_file({k.removeprefix("module."): v for k, v in task.live.items()}, folder / "live.safetensors")
    print("processes", accelerator.num_processes, f"held {held:.1f}")
accelerator.end_training()
'''


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


def run(kind, launch, accumulate, folder, steps=20):
    folder.mkdir(exist_ok=True)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [*launch, str(program), kind, str(accumulate), str(folder), str(steps)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = "processes 1 held 1.0" if launch == ONE else f"processes 2 held {0.5 if launch == SHARDED else 1.0}"
    assert expected in done.stdout
    return {
        **load_file(folder / "live.safetensors"),
        **{f"ema.{k}": v for k, v in load_file(folder / "model.safetensors").items()},
    }


def difference(one, other):
    """Return the largest difference of any weight."""
    assert other.keys() == one.keys()
    return max((other[name] - one[name]).abs().max().item() for name in one)


def test_two_processes_train_an_encoder_and_share_the_encoding(tmp_path):
    path = write(tmp_path)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for stage in ("train_encoder", "train_rdm"):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
        command = [*launch, str(ROOT / "tools" / f"{stage}.py"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    state = tmp_path / "run" / "encoder" / "state" / "step-000000006"
    assert len(list(state.glob("random_states_*.pkl"))) == 2, "each of two processes leaves its own"
    assert checkpoint.load(tmp_path / "run" / "rdm" / checkpoint.FILE).facts["step"] == 20


SHARING = """
import sys, torch
from pathlib import Path
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config
from rcg.encoding import cache
from rcg.distributed import launch as parallel
from rcg.data.images import load_images
from rcg.data.datasets.digits import DigitsConfig
from rcg.encoding.representation import Representation, Transform

cache.SHARD = 16
accelerator = parallel.start()
torch.manual_seed(0)
config = MoCoV3Config(arch="resnet18", width=4, depth=1, projector_hidden=8, projector_dim=6)
encoder = Representation(MoCoV3(config, 16), Transform("per_sample"))
encoded, encode = [], encoder.encode
encoder.encode = lambda image: encoded.append(len(image)) or encode(image)
images = load_images(DigitsConfig(limit=90))[0]
views = cache.representations(images, encoder, 1, Path(sys.argv[1]), accelerator, "train")
total = views.rows(range(len(views)), [0] * len(views)).double().sum().item()
print(f"rank {accelerator.process_index} of {accelerator.num_processes} encoded {sum(encoded)} sum {total:.6f}")
accelerator.end_training()
"""


def test_two_processes_share_the_shards_of_a_cache(tmp_path):
    program = tmp_path / "sharing.py"
    program.write_text(SHARING)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(program), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = sorted(re.findall(r"rank (\d) of (\d) encoded (\d+) sum (-?[\d.]+)", done.stdout))
    assert [line[:3] for line in told] == [("0", "2", "48"), ("1", "2", "33")]
    assert told[0][3] == told[1][3], "both read all of it"


@pytest.mark.parametrize("kind", ["rep_mlp", "dit"])
def test_two_processes_end_where_one_does(kind, tmp_path):
    one = run(kind, ONE, 1, tmp_path / "one")
    for accumulate in (1, 3):
        two = run(kind, TWO, accumulate, tmp_path / f"accumulated{accumulate}")
        assert difference(one, two) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rep_mlp", "dit", "adm"])
def test_two_processes_with_half_of_the_weights_each_end_where_one_does(kind, tmp_path):
    one = run(kind, ONE, 1, tmp_path / "one")
    run(kind, SHARDED, 3, tmp_path / "sharded", steps=8)
    resumed = run(kind, SHARDED, 3, tmp_path / "sharded")
    assert difference(one, resumed) < 1e-5


@pytest.mark.slow
def test_a_generator_is_trained_in_shards_by_its_tool_and_goes_on_only_so(tmp_path):
    path = write(tmp_path, generator__condition="none", generator__train__precision="bf16")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*SHARDED, str(ROOT / "tools" / "train_pixel.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run" / "dit-none"
    assert checkpoint.load(folder / checkpoint.FILE).facts["step"] == 20
    assert len(list((folder / "samples").iterdir())) == 1
    assert Pipeline.from_run(tmp_path / "run").sample(range(2)).images.shape == (2, 3, 16, 16)
    whole = tool("train_pixel", path, "--resume")
    assert whole.returncode == 2
    assert "step-000000020 was written with FSDP: go on as the run was started" in whole.stderr


@pytest.mark.parametrize(
    ("asked", "train", "shardable", "said"),
    [
        ({}, {}, True, "set fsdp_version: 2"),
        ({"VERSION": "2", "STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}, True, "set FULL_STATE_DICT"),
        ({"VERSION": "2"}, {"compile": True}, True, "set train.compile=false"),
        ({"VERSION": "2"}, {}, False, "encoders and tokenizers are trained without it"),
    ],
)
def test_what_cannot_be_sharded_is_refused(asked, train, shardable, said, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for key, value in asked.items():
        monkeypatch.setenv(f"FSDP_{key}", value)
    with pytest.raises(UserError, match=said):
        parallel.start(TrainConfig(precision="no", tracker="none", **train), shardable=shardable)


TOKENIZER = """
import sys, torch
from pathlib import Path
from rcg.distributed import launch as parallel
from rcg.config import AutoencoderTrain
from rcg.core.contracts import Report
from rcg.data.images import load_images
from rcg.data.datasets.digits import DigitsConfig
from rcg.core.registry import AUTOENCODERS
from rcg.training.tasks.autoencoder import Comparisons, AutoencoderTask
from rcg.training.loop import train

folder = Path(sys.argv[1])
torch.manual_seed(0)
build = AUTOENCODERS.get("vqgan")
small = {"width": 32, "multipliers": [1, 1], "blocks": 1, "channels": 4}
model = build(build.Config(**small, quantizer={"codes": 16, "revive": 0, "decay": 0.8}), 16)
model.quantize.counts.fill_(1)
model.quantize.sums.copy_(model.quantize.codebook)
images, held_out = load_images(DigitsConfig(image_size=16, limit=100))
config = AutoencoderTrain(steps=4, batch_size=8, grad_accum_steps=2, lr=1e-4, ema_decay=0.9, perceptual="none", adversarial_start=2,
                        discriminator_width=8, precision="no", tracker="none")
accelerator = parallel.start(config, folder)
task = AutoencoderTask(model, images, held_out, config, Comparisons(None, {}), {})
train(task, config, folder, accelerator, seed=3, workers=0)
if accelerator.is_main_process:
    print("processes", accelerator.num_processes)
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_a_tokenizer_and_its_codebook_as_one_does(tmp_path):
    (tmp_path / "program.py").write_text(TOKENIZER)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = []
    for processes in ("1", "2"):
        (tmp_path / processes).mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command = [*launch, str(tmp_path / "program.py"), str(tmp_path / processes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"processes {processes}" in done.stdout
        found.append(checkpoint.load(tmp_path / processes / checkpoint.FILE).tensors)
    one, two = found
    # Adam makes whole steps of rounding errors where a gradient is near zero: at a low rate these stay small.
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert two["quantize.counts"].sum() > 16
