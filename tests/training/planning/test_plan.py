"""A plan follows from what a folder holds, how fast a machine is, and the minutes: made-up ones, and closed forms."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from rcg.config import load_experiment
from rcg.core.errors import UserError
from rcg.training.planning import measure
from rcg.training.planning.folder import FolderFacts, look_at
from rcg.training.planning.plan import WIDTHS, Speeds, check_size, image_side, make_plan
from rcg.training.planning.writing import as_yaml
from tests.toy import complaint, tool

PHOTOS = FolderFacts(root=Path("photos"), images=10_000, side=200)
FAST = Speeds(
    start=6,
    steps={"encoder": 0.2, "rdm": 0.02, "autoencoder": 0.5},
    generators={96: 0.1, 160: 0.25},
    fixed={"encoder": 2, "rdm": 3, "autoencoder": 4, "generator": 5},
    encode=0.001,
    latent=0,
    sample=dict.fromkeys(WIDTHS, 0.1),
)


def steps(plan):
    return {stage.name: stage.steps for stage in plan.stages if stage.steps}


@pytest.mark.parametrize("minutes", [5, 20, 60, 600])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_commands_take_the_minutes_and_no_more(minutes, size):
    plan = make_plan(PHOTOS, FAST, minutes, size, "plan.yaml")
    assert 0.97 * minutes <= plan.minutes <= minutes + 0.01
    assert plan.stages[-1].name == "gallery"
    assert [stage.name for stage in plan.stages] == [
        *("encoder", "rdm"), *(["autoencoder", "latents"] if size > 64 else []), *("generator", "gallery")
    ]  # fmt: skip


def test_steps_are_shares_of_what_starting_and_encoding_leave():
    plan = make_plan(PHOTOS, FAST, 20, 64, "plan.yaml")
    # Three stages and a gallery start; images are encoded for the encoder's evaluation, twice for the cache, and read
    # once more by the generator.
    left = 1200 - 4 * 6 - (2 + 3 + 5) - 40 - 64 * 0.1 - 4 * 32 * 0.1
    assert steps(plan)["encoder"] == int(0.4 * left / 0.2)
    assert steps(plan)["rdm"] == int(0.1 * left / 0.02)


def test_a_wider_generator_is_chosen_where_its_steps_fit():
    widths = [make_plan(PHOTOS, FAST, minutes, 64, "p.yaml").experiment["generator"]["width"] for minutes in (10, 60)]
    assert widths == [96, 160]


def test_a_faster_machine_takes_more_steps():
    faster = replace(FAST, steps={name: s / 2 for name, s in FAST.steps.items()}, generators={96: 0.05, 160: 0.3})
    slow, fast = (steps(make_plan(PHOTOS, speeds, 10, 64, "p.yaml")) for speeds in (FAST, faster))
    assert all(fast[name] >= 1.99 * slow[name] for name in ("encoder", "rdm", "generator"))


def test_few_images_are_not_shown_for_ever_and_the_generator_gets_the_time():
    plan = make_plan(replace(PHOTOS, images=400), FAST, 600, 64, "p.yaml")
    assert steps(plan)["encoder"] == 200 * 336 // 128
    assert plan.minutes == pytest.approx(600, rel=0.01)
    assert "watch `copies`" in plan.warnings[0]


def test_a_part_of_a_large_folder_is_used_where_encoding_all_of_it_took_the_minutes():
    facts = replace(PHOTOS, images=1_000_000)
    plan = make_plan(facts, FAST, 60, 64, "p.yaml")
    # Four looks at each image, a millisecond each, in a quarter of the minutes.
    assert plan.experiment["data"]["limit"] == 225_000
    assert plan.minutes == pytest.approx(60, rel=0.01)
    assert "225000 of 1000000 pictures are used" in plan.warnings[0]
    assert "limit" not in make_plan(facts, FAST, 600, 64, "p.yaml").experiment["data"]


def test_latents_are_computed_of_each_view_by_the_autoencoder():
    slow = replace(FAST, latent=0.01)
    (latents,) = (stage for stage in make_plan(PHOTOS, slow, 60, 128, "p.yaml").stages if stage.name == "latents")
    assert latents.minutes == pytest.approx((6 + 2 * 10_000 * 0.01) / 60)


def test_other_programs_slow_no_plan_down_but_are_told_of():
    quiet, busy = (make_plan(PHOTOS, replace(FAST, slowdown=s), 60, 64, "p.yaml") for s in (1.0, 3.0))
    assert busy.stages == quiet.stages
    assert not quiet.warnings
    assert "about 3.0 times as long" in busy.warnings[0]


def test_a_clock_does_not_count_the_time_that_other_programs_take(monkeypatch):
    # Of ten seconds, the main thread waited for a core for six: for others, or for this program's own processes.
    for used, expected in ((3.0, 4.0), (14.0, 7.0)):
        clocks = {"_waited": iter([0.0, 6.0]), "_used": iter([0.0, used]), "cores": iter([2])}
        for name, values in clocks.items():
            monkeypatch.setattr(measure, name, partial(next, values))
        monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=partial(next, iter([0.0, 10.0]))))
        assert measure.Clock().seconds(lambda: None) == expected


def test_forty_images_get_a_warning_instead_of_a_promise():
    facts = replace(PHOTOS, images=40)
    plan = make_plan(facts, FAST, 10, 64, "p.yaml")
    assert "40 pictures are too few to learn from" in plan.warnings[0]
    text = as_yaml(plan, facts, FAST, 10)
    assert "What to expect" not in text
    assert "Careful: 40 pictures" in text


def test_minutes_that_do_not_pay_for_the_start_are_refused():
    with pytest.raises(UserError, match=r"1 minutes are too few: .* give --minutes \d+ or more") as refusal:
        make_plan(PHOTOS, FAST, 1, 64, "p.yaml")
    enough = float(str(refusal.value).split("--minutes ")[1].split()[0])
    assert make_plan(PHOTOS, FAST, enough, 64, "p.yaml").minutes <= enough + 0.01


@pytest.mark.parametrize("images", [3, 40, 150, 1000, 50_000])
@pytest.mark.parametrize("size", [16, 24, 32, 64, 128, 256])
def test_every_plan_is_an_experiment(tmp_path, images, size):
    facts = replace(PHOTOS, root=tmp_path, images=images, gray=images == 150)
    plan = make_plan(facts, FAST, 30, size, "plan.yaml")
    path = tmp_path / "plan.yaml"
    path.write_text(as_yaml(plan, facts, FAST, 30))
    experiment = load_experiment(str(path))
    assert not list(experiment.warnings())
    assert experiment.generator.train.steps == steps(plan)["generator"]
    assert experiment.encoder.train.batch_size <= max(2, images)


@pytest.mark.parametrize(("side", "size"), [(8, 16), (28, 24), (32, 32), (63, 56), (500, 64)])
def test_images_are_learned_at_64_pixels_or_what_they_have(side, size):
    assert image_side(side) == size
    check_size(size)


@pytest.mark.parametrize(("size", "fitting"), [(30, 32), (65, 64), (200, 192)])
def test_a_size_without_patches_is_refused_with_one_that_has_them(size, fitting):
    with pytest.raises(UserError, match=f"{fitting} for example"):
        check_size(size)
    check_size(fitting)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            gray = rng.integers(0, 255, (20, 40), dtype=np.uint8)
            Image.fromarray(gray).save(root / name / f"{number}.png")
    return root


def test_a_folder_is_looked_at(folder):
    Image.new("RGBA", (20, 20)).save(folder / "a" / "alpha.png")
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    facts = look_at(folder)
    assert facts == FolderFacts(folder, 13, classes=2, side=20, elongated=12 / 13, gray=True, transparent=1 / 13)
    Image.new("RGB", (20, 20), "red").save(folder / "a" / "red.png")
    assert not look_at(folder).gray


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing", "--minutes", 5], "nothing"),
        (["pictures"], "--minutes"),
        (["pictures", "--minutes", 0], "expected a number from 0.1"),
        (["pictures", "--minutes", 5, "--image-size", 30], "32 for example"),
        (["pictures", "--minutes", 5, "--out", "plan.txt"], "ending .yaml"),
        (["pictures", "--minutes", 5, "--out", "there.yaml"], "replace it with --overwrite"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(folder, monkeypatch, arguments, expected):
    monkeypatch.chdir(folder.parent)
    Path("there.yaml").write_text("mine")
    assert expected in complaint(tool("plan", *arguments))
    assert Path("there.yaml").read_text() == "mine"
    assert not Path("plan.yaml").exists()


@pytest.fixture
def own_accelerator():
    """Let a test have an accelerator of its own precision, whatever was tested before or will be after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.usefixtures("own_accelerator")
def test_a_machine_is_measured_and_the_commands_end_with_a_gallery(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(
        "rcg.training.planning.measure.STEPS", dict.fromkeys(("encoder", "rdm", "autoencoder", "generator"), 3)
    )
    monkeypatch.setattr("rcg.training.planning.measure.LEAST_SECONDS", 0.1)
    monkeypatch.setattr("rcg.training.planning.measure.WIDTHS", WIDTHS[:1])
    planned = tool("plan", "pictures", "--minutes", 10, "--image-size", 96)
    assert planned.returncode == 0, planned.stderr
    text = Path("plan.yaml").read_text()
    assert "12 pictures are too few" in text
    commands = [line[2:].split() for line in text.splitlines() if line.startswith("#   python tools/")]
    assert [command[1] for command in commands] == [
        *("tools/train_encoder.py", "tools/train_rdm.py", "tools/train_autoencoder.py", "tools/cache.py"),
        *("tools/train_pixel.py", "tools/sample.py"),
    ]
    short = [f"{section}.train.steps=2" for section in ("encoder", "rdm", "generator", "generator.autoencoder")]
    for command in commands[:-1]:
        done = tool(Path(command[1]).stem, "plan.yaml", *short)
        assert done.returncode == 0, done.stderr
    assert tool("sample", "runs/pictures", "--num", 4).returncode == 0
    assert Path("runs/pictures/gallery/gallery.png").is_file()
