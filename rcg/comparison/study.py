"""What a comparison compares, what it refuses to, and the training of missing networks at equal compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcg.comparison.arms import ARMS, Arm
from rcg.config import Experiment, GeneratorConfig, differences
from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.data.images import Images
from rcg.encoding.run_folder import StageFolder
from rcg.encoding.workspace import Workspace
from rcg.evaluation.extractors import MetricOptions
from rcg.evaluation.samples import SamplingPlan
from rcg.pipeline import SamplingOptions
from rcg.training.stages import STAGES

_ALIKE = {"lr", "grad_clip", "precision"}
"""Settings that a resumed training may change, but the trainings of a comparison share."""


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        work: the experiment; the arms replace its generator's condition.
        keys: the arms, names of `rcg.comparison.arms.ARMS`.
        plan: how samples are generated, alike for all arms; the strength of SDEdit is for the arm `twice` alone.
        metrics: with what they are compared.
        out: folder of the results.
        cache: folder of features.
        train: trains the generator of an experiment, from its last state on; None: nothing is trained, and arms
            without a trained network are left out.
    """

    work: Workspace
    keys: Sequence[str]
    plan: SamplingPlan
    metrics: MetricOptions
    out: Path
    cache: Path
    train: Callable[[Experiment], None] | None

    @property
    def generator(self) -> GeneratorConfig:
        """The section of the experiment whose condition is replaced; its training knows its steps."""
        return self.work.resolve_epochs().require_generator()

    def left_out_arms(self) -> dict[str, str]:
        """Return why arms cannot be evaluated, by their keys.

        Raises:
            UserError: a folder holds another experiment's network, or one that was trained for longer, or none is left.
        """
        reasons = {}
        for key in self.keys:
            classes = self.work.images.train.classes
            reason = unavailable(key, self.work.experiment, classes) or self._untrained(key)
            if reason:
                reasons[key] = reason
        if len(reasons) == len(self.keys):
            raise UserError(f"none of the arms can be evaluated: {'; '.join(dict.fromkeys(reasons.values()))}")
        return reasons

    def announce(self, left_out: Mapping[str, str]) -> None:
        """Say which networks are trained and which are going to be."""
        steps = self.generator.train.steps
        for work in self._networks(left_out).values():
            folder, trained = _trained_steps(work, self.work.images.train)
            state = "is trained" if trained == steps else f"will be trained from step {trained} to {steps}"
            say(f"{folder.path} {state}")

    def train_networks(self, left_out: Mapping[str, str]) -> None:
        """Train the networks of the arms that are not left out, where they are not trained to their end, if asked for.

        Raises:
            UserError: one was interrupted.
        """
        steps = self.generator.train.steps
        for name, work in self._networks(left_out).items():
            if self.train is None or _trained_steps(work, self.work.images.train)[1] == steps:
                continue
            self.train(work.experiment)
            trained = _trained_steps(work, self.work.images.train)[1]
            if trained < steps:
                raise UserError(f"{name} was stopped at step {trained}: the same command goes on from there")

    def _untrained(self, key: str) -> str | None:
        """Return which network of an arm is not trained, where it is not about to be."""
        steps = self.generator.train.steps
        for arm in _needed_arms([key]):
            folder, trained = _trained_steps(self._arm_work(arm), self.work.images.train)
            if trained > steps:
                raise UserError(
                    f"{folder.path} was trained for {trained} steps, but generator.train.steps is {steps}: arms are "
                    f"compared at equal training compute, so set it to {trained}, or choose another run="
                )
            if trained < steps and self.train is None:
                return f"{folder.name} is at step {trained} of {steps}: leave --no-train out to train it"
        return None

    def _networks(self, left_out: Mapping[str, str]) -> dict[str, Workspace]:
        """Return the workspaces of the generators that the arms need, by the folders of these."""
        arms = _needed_arms([key for key in self.keys if key not in left_out])
        works = [self._arm_work(arm) for arm in arms]
        return {work.generator_folder.name: work for work in works}

    def _arm_work(self, arm: Arm) -> Workspace:
        """Return the workspace whose generator is the network of an arm."""
        return self.work.with_generator(arm.variant(self.generator))


def check(work: Workspace, keys: Sequence[str], options: SamplingOptions) -> None:
    """Refuse an experiment whose arms would not be comparable.

    Raises:
        UserError: there is no generator, or a setting belongs to one of the arms or ends trainings at different steps,
            or guidance has no condition, or no trained null condition.
    """
    config = work.experiment.require_generator()
    for key in ("self_condition", "joint_representation"):
        if getattr(config, key):
            raise UserError(f"generator.{key} is one of the arms that are compared: leave it out, or set it false")
    if config.train.patience is not None:
        raise UserError(
            "generator.train.patience ends trainings at different steps, but arms are compared at equal training "
            "compute: leave it out"
        )
    guided = [key for key in keys if ARMS[key].variant(config).is_guidable]
    if guided:
        guidance = config.guidance.with_scale(options.guidance)
        ARMS[guided[0]].variant(config).check_guidance(guidance, options.allow_untrained_null)
    elif options.guidance is not None:
        raise UserError(
            "none of the arms has a condition to guide toward: leave --guidance out, or choose other --arms"
        )
    conditional = [key for key in keys if ARMS[key].condition == "representation"]
    if conditional and not work.run.rdm.is_trained:
        raise UserError(
            f"{work.run.rdm.path} holds no trained RDM, which the arms {', '.join(conditional)} need: run "
            f"tools/train_rdm.py with the same configuration first, or choose others with --arms"
        )


def unavailable(key: str, experiment: Experiment, classes: Sequence[str]) -> str | None:
    """Return why an arm does not exist for an experiment, None if it does."""
    if key == "class" and not classes:
        return "the data set has no labels"
    if key == "generated" and experiment.rdm.condition == "vector":
        return "the RDM is conditioned on vectors that are computed elsewhere"
    if key == "joint":
        config = experiment.require_generator()
        if "joint_representation" not in GENERATORS.get(config.name).capabilities:
            return f"{config.name} cannot generate a representation together with the image"
        return ARMS["joint"].variant(config).joint_obstacle
    return None


def _needed_arms(keys: Sequence[str]) -> list[Arm]:
    """Return the arms whose networks some arms need; `encoded` needs that of another one first."""
    first = [ARMS["none"]] if "encoded" in keys else []
    return [*first, *(ARMS[key] for key in keys)]


def _trained_steps(work: Workspace, images: Images) -> tuple[StageFolder, int]:
    """Return the folder of a generator and how many steps it was trained on some images, 0 where there is none.

    Raises:
        UserError: the folder holds another experiment's, or other files, or it is trained with another rate, or on
            other images.
    """
    stage, experiment = STAGES["generator"], work.experiment
    folder = stage.folder(experiment)
    folder.check_identity(stage.identity, experiment)
    saved = folder.experiment()
    if saved is not None:
        before, now = (e.require_generator().train.model_dump(include=_ALIKE) for e in (saved, experiment))
        changed = list(differences(before, now, "generator.train"))
        if changed:
            raise UserError(
                f"{folder.path} was trained otherwise ({'; '.join(changed)}): arms are compared at equal training, so "
                f"set the same for all of them, or choose another run="
            )
    if not folder.is_trained:
        return folder, 0
    facts = folder.part(weights=False).facts
    if facts.fingerprint not in ("", images.fingerprint):
        raise UserError(
            f"{folder.path} was trained on other images than those that are now the training images of "
            f"{experiment.data.name}: restore them, or delete it to train it again"
        )
    return folder, facts.step
