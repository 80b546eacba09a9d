"""The speed benchmark reports wrong and missing rows, and judges its targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as main
from benchmarks.arms import names
from benchmarks.arms.workloads import WORKLOADS, Workload
from benchmarks.cost import ablation, threshold
from benchmarks.report.tables import speed as speed_tables
from benchmarks.scaling import embeddings
from benchmarks.shared import kept, machine, quiet, storage
from benchmarks.speed import quick, speed, stored, targets
from benchmarks.timing import measuring
from benchmarks.timing.worker import Peer, Worker
from tests.support.internals import installation


class FakeWorker:
    """Answers like a peer's process; `losses` are those of its arms."""

    missing = None

    def __init__(self, name: str, losses: dict[str, float]) -> None:
        self.peer, self.arms, self.losses = Peer(name, name), tuple(losses), losses

    def ask(self, request: str, *arguments: Any) -> Any:
        if request == "make" and "broken" in arguments[0]:
            raise RuntimeError("it does not work")
        if request == "loss":
            return arguments[1]
        return {
            "initial_weights": 0.0,
            "make": 2.0,
            "weights": self.losses.get(arguments[0]) if arguments else None,
            "train": (0.5, 0.1),
            "clear": None,
        }[request]


def _rows() -> list[measuring.Row]:
    workers: list[Any] = [
        FakeWorker("keras", {names.REFERENCE: 1.0, names.LOOP: 1.00001}),
        FakeWorker("jax", {names.JAX: 1.1, "broken": 1.0}),
    ]
    workload = WORKLOADS["mlp-784-128-10"]
    return measuring.measure(workload, workers, 3, lambda arm: True)


@pytest.mark.matrix
def test_rows_that_are_wrong_or_missing_say_so() -> None:
    rows = {row.arm: row for row in _rows()}
    assert rows[names.LOOP].agrees is True
    assert rows[names.JAX].agrees is False
    assert rows["broken"].missing == "it does not work"
    text = speed_tables.of_rows(list(rows.values()))
    assert "NO: row is wrong" in text
    assert "missing: it does not work" in text
    assert set(targets.medians(list(rows.values()))) == {
        ("mlp-784-128-10", names.LOOP),
        ("mlp-784-128-10", names.REFERENCE),
    }


def test_a_target_without_a_right_row_is_not_met() -> None:
    lines = targets.verdicts(targets.medians(_rows()), {"mlp-784-128-10"})
    (line,) = [line for line in lines if line[1] == "SGDPlus loop / jax scan"]
    assert line[2] == "no figure"
    assert line[4].startswith("no")


def test_the_quick_run_measures_what_every_target_needs() -> None:
    ids = speed.workload_ids(quick=True)
    needed: list[Any] = []

    class Noted(dict[Any, float]):
        def __getitem__(self, key: Any) -> float:
            needed.append(key)
            return 1.0

    for target in targets.TARGETS:
        target.compute(Noted())
    assert len(needed) >= 2 * len(targets.TARGETS)
    for workload_id, arm in needed:
        assert workload_id in ids
        assert speed.wanted_arms(workload_id, quick=True)(arm), arm
    assert len(ids) < len(WORKLOADS)


@pytest.mark.parametrize(("ours", "met"), [(1.0, "yes"), (1.1, "NO")])
def test_a_target_is_met_or_not(ours: float, met: str) -> None:
    found = {("cnn", names.LOOP): ours, ("cnn", "torch eager"): 2.6}
    (line,) = [v for v in targets.verdicts(found, {"cnn"}) if v[2] != "no figure"]
    assert line == ("cnn", "SGDPlus loop / torch eager", line[2], "<= 0.4x", met)


def test_a_peer_that_is_not_installed_is_reported() -> None:
    worker = Worker(Peer("nobody", "no_such_arms"))
    worker.stop()
    assert "not installed" in str(worker.missing)
    assert worker.arms == ()


def test_shorter_data_is_the_beginning_of_longer() -> None:
    for workload in WORKLOADS.values():
        if workload.sizes[0] <= 1000:
            _assert_prefix(workload)


def _assert_prefix(workload: Workload) -> None:
    for short, long in zip(workload.data(4), workload.data(9), strict=True):
        assert short.dtype == long.dtype
        if short.dtype == "int32":  # labels, tokens and ids: equal
            assert (short == long[:4]).all()
        else:
            assert abs(short - long[:4]).max() < 1e-6


def test_embeddings_keep_their_bounds() -> None:
    found = embeddings.grown(storage.read("embeddings")["results"])
    assert all(more <= embeddings.BOUNDS[size] for size, more in found.items())


def test_a_run_waits_until_the_machine_is_quiet(monkeypatch: Any) -> None:
    times = iter([1.0, 1.3, 1.2, 1.05])
    slept: list[float] = []
    monkeypatch.setattr(quiet, "_work", lambda: lambda: next(times))
    monkeypatch.setattr(quiet.time, "sleep", slept.append)
    machine = quiet.Quiet()
    assert machine.wait() == 1.0
    assert machine.wait() == 1.05
    assert len(slept) == 2


def test_a_run_does_not_wait_for_ever(monkeypatch: Any) -> None:
    times = iter([1.0, 1.3])
    monkeypatch.setattr(quiet, "_work", lambda: lambda: next(times))
    machine = quiet.Quiet()
    machine.wait()
    assert machine.wait(seconds=0) == 1.3


def test_each_workload_is_stored_beside_the_others(
    monkeypatch: Any, tmp_path: Any
) -> None:
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "environment", lambda: {"commit": "1234567"})
    rows = [row for row in _rows() if row.missing is None]
    stored.keep("speed", "mlp-784-128-10", rows, [1.0, 1.1])
    stored.keep("speed", "cnn", rows[:1], [1.0, 1.0])
    results = storage.read("speed")["results"]
    assert stored.rows(results) == [*rows, rows[0]]
    assert stored.environments(results) == [{"commit": "1234567"}]
    assert stored.is_fresh("speed", "cnn")
    assert not stored.is_fresh("speed", "lstm-20x8")
    monkeypatch.setattr(machine, "environment", lambda: {"commit": "1-dirty"})
    assert not stored.is_fresh("speed", "cnn")


def test_findings_are_stored_one_by_one(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "environment", lambda: {"commit": "1234567"})
    forms = [ablation.Form(name, "cnn", 2.0, 1.0, True) for name in ("one", "two")]
    for form in forms:
        kept.keep("ablation", form, [1.0, 1.1])
    assert kept.read("ablation", ablation.Form) == forms
    again = dataclasses.replace(forms[0], without=3.0)
    kept.keep("ablation", again, [1.0, 1.0])
    order = threshold.Order(1024, 2.0, 1.0)
    kept.keep("ablation", order, [1.0, 1.0])
    assert kept.read("ablation", ablation.Form) == [again, forms[1]]
    assert kept.read("ablation", ablation.Form, threshold.Order)[-1] == order
    assert kept.environments("ablation")[0] == {"commit": "1234567", "drift": [1, 1]}


def test_arms_inside_a_finding_are_read_again(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    found = quick.Compared(0.9, [quick.Arm("SGDPlus", 32, 64, [0.1], 2.0)])
    kept.keep("quick", found, [1.0, 1.0])
    assert kept.read("quick", quick.Compared) == [found]


def test_a_run_waits_before_each_finding_and_stores_it_at_once(
    monkeypatch: Any, tmp_path: Any
) -> None:
    forms = [ablation.Form(name, "cnn", 2.0, 1.0, True) for name in ("one", "two")]
    seen: list[Any] = []

    def measure(arguments: list[str]) -> Iterator[ablation.Form]:
        for form in forms:
            seen.append(form.name)
            yield form
            assert kept.read("ablation", ablation.Form)[-1] == form
        raise RuntimeError("cut off")

    modules = {
        "cost.ablation": SimpleNamespace(measure=measure),
        "report.tables.cost": SimpleNamespace(ablation=lambda found: map(str, found)),
    }
    monkeypatch.setattr(storage, "RESULTS", tmp_path)
    monkeypatch.setattr(main, "_module", modules.__getitem__)
    monkeypatch.setattr(main.QUIET, "wait", lambda: seen.append("wait") or 1.0)
    with pytest.raises(RuntimeError, match="cut off"):
        main.run("ablation", [])
    assert seen == ["wait", "one", "wait", "two", "wait"]
    assert kept.read("ablation", ablation.Form) == forms


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*main.STUDIES, *main.REPORTS, *main.KEPT))
    assert str(main.main(["nothing"])).startswith("usage: ")


@pytest.mark.parametrize("name", [*main.STUDIES, *main.REPORTS])
def test_each_command_has_help(name: str, monkeypatch: Any, capsys: Any) -> None:
    """Nothing is measured."""
    monkeypatch.setattr(main.QUIET, "wait", lambda: 1.0)
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {name}" in capsys.readouterr().out


def test_a_line_names_days_machines_and_commits_once() -> None:
    here = {
        "date": "2026-11-26",
        "packages": {"tensorflow": "2.21.0", "keras": "3.15.1", "jax": "0.10.2"},
        "cores": 2,
        "processor": "AMD EPYC",
        "commit": "1234567",
    }
    later = here | {"date": "2026-11-28", "commit": "abcdef0"}
    assert machine.line(here, later, here, peers=["jax"]) == (
        "2026-11-26 to 2026-11-28, TensorFlow 2.21.0, Keras 3.15.1, JAX 0.10.2, "
        "2 cores of AMD EPYC, commits 1234567, abcdef0."
    )
    without = here | {"packages": here["packages"] | {"jax": None}}
    assert "JAX" not in machine.line(without, peers=["jax"])


@pytest.mark.parametrize("form", list(ablation._LAYERS))
def test_a_form_is_off_in_its_ablation_and_on_after_it(form: str) -> None:
    function = ablation._LAYERS[form][0]
    lowering = installation.LOWERINGS[function]
    with ablation._without(form):
        assert installation.LOWERINGS[function]() is None
        assert installation.is_installed(function)
    assert installation.LOWERINGS[function] is lowering
    assert installation.is_installed(function)
