"""A run evaluated through its tool: on two processes, after an interruption, and with mistakes."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rcg.config import load_encoder_section
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.evaluation.evaluate import Evaluation
from rcg.evaluation.guidance_sweep import at_each
from rcg.evaluation.references import Reference
from rcg.evaluation.report import Origin
from rcg.evaluation.samples import GeneratedImages, folder_images
from rcg.metrics.inception import Inception
from rcg.pipeline import Pipeline, SamplingOptions
from rcg.visual.grids import save_image, to_uint8
from tests.toy import ROOT, tool, train, write

RANDOM = "{name: moco_v3, arch: resnet18, width: 4, depth: 1, projector_hidden: 8, projector_dim: 6, weights: none}"
QUICK = ("--inception", "none", "--num", 70, "--resamples", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained toy run."""
    folder = tmp_path_factory.mktemp("evaluated")
    path = write(folder)
    for stage in ("encoder", "rdm", "generator"):
        train(stage, path)
    return folder / "run"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("rcg.evaluation.features.SHARD_SIZE", 32)


def pictures(folder, count=3):
    for index in range(count):
        save_image(torch.rand(3, 16, 16), folder / f"{index}.png")
    return folder


def report(out):
    (path,) = out.glob("*/report.json")
    return json.loads(path.read_text())


def evaluate(run, out, *arguments):
    done = tool("evaluate", run, *QUICK, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    return report(out)


def test_a_report_says_everything_that_decides_its_scores(run, tmp_path):
    options = ("--guidance", 1.5, "--steps", 3, "--rdm-steps", 2, "--seed", 4, "--precision", "bf16")
    found = evaluate(run, tmp_path, *options)
    samples = found["samples"]
    assert samples["precision"] == "bf16"
    assert (samples["number"], samples["seed"], samples["labels"]) == (70, 4, "none")
    assert samples["sampler"]["steps"] == 3
    assert samples["rdm_sampler"]["steps"] == 2
    assert samples["guidance"]["scale"] == 1.5
    assert found["reference"]["number"] == 180
    assert found["reference"]["resize"].startswith("short side to 16 px")
    names = {(score["name"], score["space"]) for score in found["scores"]}
    assert {("FD", "own-moco_v3"), ("consistency", "own-moco_v3"), ("copies", "pixels"), ("novelty", "pixels")} <= names
    text = next(tmp_path.glob("*/report.md")).read_text()
    assert "| consistency |" in text
    assert len(list(tmp_path.glob("*/neighbors-*.png"))) == 2


def test_saved_images_are_those_that_were_evaluated(run, tmp_path):
    evaluate(run, tmp_path, "--save-images")
    (images,) = tmp_path.glob("*/images")
    saved = next(folder_images(images, None).batches(range(8)))
    streamed = Pipeline.from_pretrained(run).generate(range(8)).images
    assert len(list(images.glob("*.png"))) == 70
    assert torch.equal(saved.images, to_uint8(streamed))


def test_an_interrupted_evaluation_goes_on_and_ends_alike(run, tmp_path, monkeypatch):
    whole = evaluate(run, tmp_path / "whole")
    generated, batches = [], GeneratedImages.batches

    def dying(self, positions):
        generated.append(list(positions))
        if len(generated) == 2:
            raise KeyboardInterrupt
        return batches(self, positions)

    monkeypatch.setattr(GeneratedImages, "batches", dying)
    assert tool("evaluate", run, *QUICK, "--out", tmp_path / "resumed").returncode == 130
    resumed = evaluate(run, tmp_path / "resumed")
    shards = [positions for positions in generated if len(positions) > 1]  # the panels draw single samples again
    assert [positions[0] for positions in shards] == [0, 32, 32, 64]
    assert resumed["scores"] == whole["scores"]


def test_two_processes_find_what_one_does(run, tmp_path):
    one = evaluate(run, tmp_path / "one")
    program = tmp_path / "program.py"
    program.write_text(
        "import runpy, sys\nfrom rcg.evaluation import features\nfeatures.SHARD_SIZE = 32\n"
        f"sys.argv[0] = r'{ROOT}/tools/evaluate.py'\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command = [*launch, str(program), str(run), *map(str, QUICK), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = report(tmp_path / "two")
    assert two["cost"]["processes"] == 2
    for ours, theirs in zip(two["scores"], one["scores"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-6)


def test_the_page_of_a_run_needs_no_other_file(run):
    evaluate(run, run / "evaluation")
    assert tool("sample", run, "--num", 4, "--steps", 2, "--out", run / "gallery").returncode == 0
    assert tool("report", run).returncode == 0
    page = (run / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,") == 3
    )  # gallery, neighbors in two spaces; the logs are too short for curves
    assert "<h2>Evaluation of " in page
    assert "<td>samples: sampler</td>" in page
    assert "src=" not in page.replace('src="data:image/png;base64,', "")
    assert "<td>consistency</td>" in page
    assert "name: dit" in page
    assert "consistency" in tool("summary", run).stdout
    shutil.rmtree(run / "evaluation")


def test_scales_of_guidance_are_compared(run):
    options = ("--guidance", 3, 1, "--steps", 2, "--num", 40, "--no-memorization")
    done = tool("evaluate", run, *QUICK, *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (run / "evaluation").glob("guidance-dit-40-*")
    found = json.loads((folder / "guidance.json").read_text())
    assert found["head"] == ["metric", "features", "1", "3", "ideal"]
    rows = {row[0]: row[2:4] for row in found["rows"]}
    single = {}
    for path in (run / "evaluation").glob("dit-40-*/report.json"):
        one = json.loads(path.read_text())
        single[one["samples"]["guidance"]["scale"]] = {score["name"]: score["value"] for score in one["scores"]}
    for name in ("FD", "consistency"):
        assert [float(cell.split()[0]) for cell in rows[name]] == pytest.approx(
            [single[1][name], single[3][name]], rel=1e-3
        )
    assert not any("validation" in name for name in rows)  # the same at every scale
    lowest = min(single, key=lambda scale: single[scale]["FD"])
    line = found["lines"][0]
    assert line.startswith(f"FD (own-moco_v3) is lowest at a guidance of {lowest:g}")
    assert line in (folder / "guidance.md").read_text()
    assert tool("report", run).returncode == 0
    page = (run / "report.html").read_text()
    assert "<h2>Guidance of dit: " in page
    assert line in page
    shutil.rmtree(run / "evaluation")


def test_samples_of_representations_from_a_file_are_evaluated_alike(run, tmp_path):
    done = tool("sample_rdm", run.parent / "toy.yaml", "--num", 70, "--out", tmp_path / "z")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "z" / "representations.safetensors"
    one = evaluate(run, tmp_path / "one")
    two = evaluate(run, tmp_path / "two", "--representations", file)
    assert two["samples"]["representations"]["of"] == "a file"
    for ours, theirs in zip(two["scores"], one["scores"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=0.01)  # 8 bits may round apart


def test_a_generator_without_condition_has_no_guidance_to_compare(tmp_path):
    pipeline = SimpleNamespace(can_guide=False)
    evaluation = Evaluation(
        samples=GeneratedImages(pipeline, 8, SamplingOptions()),
        origin=Origin(tmp_path, "dit-none"),
        extractors=[],
        reference=Reference("train", None),
        splits=None,
        memorization=False,
        resamples=0,
    )
    with pytest.raises(UserError, match="dit-none has no condition to guide toward"):
        at_each(evaluation, [1.0, 2.0])


def test_an_encoder_of_a_section_is_another_space(run, tmp_path):
    section = {"name": "moco_v3", "arch": "resnet18", "width": 4, "depth": 1, "weights": "none"}
    section |= {"projector_hidden": 8, "projector_dim": 6}
    found = evaluate(run, tmp_path, "--encoder", json.dumps(section), "--no-memorization", "--reference", "validation")
    assert {score["space"] for score in found["scores"]} == {"moco_v3"}
    assert found["reference"]["number"] == 20
    again = evaluate(run, tmp_path / "again", "--encoder", json.dumps(section), "--no-memorization", "--resamples", 0)
    assert again["extractors"] == found["extractors"], "random weights are the same ones at every call"


def test_a_pipeline_that_was_saved_brings_its_own_encoder(run, tmp_path):
    Pipeline.from_pretrained(run).save_pretrained(tmp_path / "saved")
    reference = pictures(tmp_path / "images")
    saved = evaluate(tmp_path / "saved", tmp_path / "out", "--reference", reference)
    assert saved["extractors"] == evaluate(run, tmp_path / "run")["extractors"]
    assert "consistency" in {score["name"] for score in saved["scores"]}
    assert saved["reference"]["resize"].startswith("short side to 16 px")


def test_an_extractor_of_another_network_is_refused(run, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    done = tool("evaluate", run, "--inception", tmp_path / "other.pth", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "other.pth does not fit torch-fidelity's InceptionV3" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_extractor_without_its_last_layers_is_refused_for_them(tmp_path, monkeypatch):
    torch.save({"Mixed_7c.branch1x1.conv.weight": torch.zeros(2)}, tmp_path / "cut.pth")
    monkeypatch.setattr("rcg.metrics.inception.FeatureExtractorInceptionV3", lambda *_, **__: torch.nn.Identity())
    with pytest.raises(UserError, match="lacks the layers after Mixed_6"):
        Inception(tmp_path / "cut.pth", "2048")
    assert Inception(tmp_path / "cut.pth", "768").has_spatial


def test_weights_that_cannot_be_had_are_said_to_be_missing(run, tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    done = tool("evaluate", run, "--num", 40, "--resamples", 0, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no FID: torch-fidelity's InceptionV3 cannot be downloaded here" in report(tmp_path)["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "there is no missing: expected a folder of a run"),
        (["run", "--reference", "nowhere.npz"], "there is no file nowhere.npz"),
        (["images", "--inception", "none"], "--reference train needs the experiment"),
        (["images", "--inception", "none", "--reference", "images"], "there is nothing to compare images with"),
        (["images", "--encoder", "own", "--inception", "none", "--reference", "images"], "name a YAML file"),
        (["run", "--encoder", "none.yaml"], "there is no file none.yaml with an encoder section"),
        (["run", "--encoder", "{name: moco_v3}"], "names no weights: say where they are"),
        (
            ["run", "--encoder", "{name: moco_v4, weights: none}"],
            "no encoder is called 'moco_v4'; did you mean 'moco_v3'",
        ),
        (
            ["images", "--reference", "images", "--encoder", RANDOM, "--guidance", 1, 2],
            "several --guidance generate samples at each scale, but files are evaluated",
        ),
    ],
)
def test_mistakes_give_one_sentence(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run)
    samples = checkpoint.load(run / "dit" / "model.safetensors")  # the run is whole
    assert samples.kind == "generator"
    pictures(tmp_path / "images")
    inception = [] if "--inception" in arguments else ["--inception", "none"]
    done = tool("evaluate", *arguments, *inception, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_experiments_encoder_section_brings_its_image_size(tmp_path):
    path = write(tmp_path, encoder__weights="none")
    section, size = load_encoder_section(str(path))
    assert (section.name, size) == ("moco_v3", 16)


def test_images_that_changed_since_training_leave_out_what_needs_unseen_ones(run, tmp_path):
    other = write(tmp_path, run=str(run), data__limit=150)
    found = evaluate(run, tmp_path / "out", "--config", other, "--num", 12)
    names = {score["name"] for score in found["scores"]}
    assert "FD" in names
    assert not any(name in ("copies", "novelty") or "validation" in name for name in names)
    (warning,) = [warning for warning in found["warnings"] if "were not trained on" in warning]
    assert warning.startswith("generator and rdm were not trained on the 1")
    assert "images that are now the training images of digits" in warning


def test_a_single_sample_leaves_figures_out_in_words(run, tmp_path):
    found = evaluate(run, tmp_path, "--num", 1)
    assert "FD" not in {score["name"] for score in found["scores"]}
    assert any("a covariance needs at least 2 samples" in warning for warning in found["warnings"])
    assert "NaN" not in next(tmp_path.glob("*/report.json")).read_text()
    assert all(score["value"] is not None for score in found["scores"])


@pytest.mark.parametrize("stage", ["encoder", "dit"])
def test_the_grids_of_a_training_are_no_samples(run, stage):
    with pytest.raises(UserError, match="holds no pictures but drawings that this program wrote"):
        folder_images(run / stage / "samples", None)


def test_two_encoders_of_one_kind_are_two_spaces(run, tmp_path):
    base = {
        "name": "moco_v3",
        "arch": "resnet18",
        "depth": 1,
        "weights": "none",
        "projector_hidden": 8,
        "projector_dim": 6,
    }
    sections = [json.dumps(base | {"width": width}) for width in (4, 8)]
    options = ["--no-memorization", "--reference", "validation"]
    alone = [
        evaluate(run, tmp_path / str(i), "--encoder", text, *options)["scores"][0] for i, text in enumerate(sections)
    ]
    both = evaluate(run, tmp_path / "both", "--encoder", sections[0], "--encoder", sections[1], *options)["scores"]
    values = {score["space"]: score["value"] for score in both if score["name"] == alone[0]["name"]}
    assert values == {"moco_v3": alone[0]["value"], "moco_v3-2": alone[1]["value"]}


def test_without_the_search_the_reference_distance_stays(run, tmp_path):
    names = {
        score["name"]
        for score in evaluate(run, tmp_path, "--encoder", "own", "--no-memorization", "--num", 10)["scores"]
    }
    assert any("validation images" in name for name in names)
    assert not names & {"copies", "novelty"}


def test_reports_of_other_contents_lie_beside_each_other(run, tmp_path):
    for options in ([], ["--no-memorization"], ["--no-memorization", "--resamples", 4]):
        assert tool("evaluate", run, *QUICK, "--out", tmp_path, "--encoder", "own", *options).returncode == 0
    assert len(list(tmp_path.glob("*/report.json"))) == 3
