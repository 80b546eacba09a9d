"""What a public host and a library catalogue read names this release."""

from __future__ import annotations

import re

import keras_sgd_plus
from tests.support.paths import ROOT


def test_the_citation_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", text, re.M) == [keras_sgd_plus.__version__]


def test_the_security_policy_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    (named,) = set(re.findall(r"`(tests/\S+\.py)`", text))
    assert (ROOT / named).exists()


def test_the_public_host_runs_the_gate() -> None:
    text = (ROOT / ".github" / "workflows" / "gate.yml").read_text()
    commands = re.findall(r"run: bash (\S+)", text)
    assert commands == [".ci/run", "tests/nightly.sh"]
    assert all((ROOT / command).exists() for command in commands)
