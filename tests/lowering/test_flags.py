"""The first SGDPlus sets a flag of XLA, and keeps what the user has set."""

from __future__ import annotations

import os

import pytest

from keras_sgd_plus import SGDPlus

FLAGS = {
    "": "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=10000000",
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=7": None,
    "--xla_cpu_enable_fast_math=false": "--xla_cpu_enable_fast_math=false "
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=10000000",
    "--xla_backend_extra_options=a=b": "--xla_backend_extra_options=a=b,"
    "xla_cpu_small_while_loop_byte_threshold=10000000",
}


@pytest.mark.parametrize(("given", "expected"), FLAGS.items(), ids=range(len(FLAGS)))
def test_the_threshold_never_overwrites(
    given: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", given)
    SGDPlus()
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == (given if expected is None else expected)


def test_no_xla_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    SGDPlus(jit_compile=False)
    SGDPlus(examples_per_update=None)
    assert "XLA_FLAGS" not in os.environ


_OPTION = "xla_cpu_small_while_loop_byte_threshold"
_EXTRA = "--xla_backend_extra_options="


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", f"{_EXTRA}{_OPTION}=10000000"),
        (f"{_EXTRA}{_OPTION}=7", f"{_EXTRA}{_OPTION}=7"),
        (
            f"--xla_a=1 {_EXTRA}xla_b=2",
            f"--xla_a=1 {_EXTRA}xla_b=2,{_OPTION}=10000000",
        ),
    ],
    ids=["unset", "set_by_user", "beside_others"],
)
def test_construction_sets_the_flag_of_xla(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    SGDPlus(jit_compile=False)
    SGDPlus(examples_per_update=None)
    assert os.environ["XLA_FLAGS"] == flags
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == expected
    SGDPlus()
    assert os.environ["XLA_FLAGS"] == expected
