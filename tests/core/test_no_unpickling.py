"""No source of the program runs code that a file holds: every way to do so is looked for in all of them."""

import ast
import inspect

import pytest
import timm
from pydantic import ValidationError

from rcg.encoders.timm_model import TimmModelConfig
from tests.toy import ROOT

SOURCES = sorted(
    path for folder in ("rcg", "encoders", "generators", "tools") for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "marshal.load", "marshal.loads",
    "shelve.open", "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "load_state_dict_from_url",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "np.loads",
    "timm.models.load_checkpoint", "load_checkpoint",
}  # fmt: skip
REQUIRED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Calls that are harmless with such an argument, and with no other."""

OWN_SOURCES = {("sources.py", "exec"), ("sources.py", "eval")}
"""It reads the schemas of our own components for --help."""


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path):
    for name, arguments in calls(path):
        assert name not in FORBIDDEN or (path.name, name) in OWN_SOURCES, f"{path} calls {name}"
        assert not name.endswith("accelerator.load_state"), f"{path} unpickles a state"
        if name in REQUIRED:
            argument, value = REQUIRED[name]
            assert argument in arguments, f"{path} calls {name} without {argument}={value}"
            assert ast.literal_eval(arguments[argument]) is value


def test_timms_loaders_do_not_unpickle_by_default():
    for loader in (timm.models.load_state_dict, timm.models.load_state_dict_from_hf):
        assert inspect.signature(loader).parameters["weights_only"].default is True


@pytest.mark.parametrize(
    "option",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"],
)
def test_options_of_timm_that_read_files_are_refused(option):
    with pytest.raises(ValidationError, match=rf"{option}: .*encoder.weights"):
        TimmModelConfig(model="resnet10t", weights="none", options={option: "x"})
