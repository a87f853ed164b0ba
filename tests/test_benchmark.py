"""The benchmark refuses what it cannot measure before it measures anything."""

import pytest

from tests.toy import ROOT, complaint, tool


@pytest.mark.parametrize("name", ["maskgit", "unknown"])
def test_a_sampler_that_no_rdm_can_use_is_refused(monkeypatch, name):
    done = tool(f"{ROOT}/docs/benchmark", "rdm-sampling", "--sampler", name)
    assert f"argument --sampler: invalid choice: '{name}'" in complaint(done)
