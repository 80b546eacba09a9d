"""The pages under `docs/` name what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.equality.equality import Model
from benchmarks.shared import kept
from tests.callbacks import test_exact_resume, test_exact_resume_refuses
from tests.nonfinite import test_skip
from tests.optimizer import test_live_settings
from tests.pending import test_tables
from tests.support.blocks import blocks_of, printed_and_said
from tests.support.internals import keras_optimizer, keras_trainer
from tests.support.paths import PACKAGE, ROOT
from tests.support.tables import UPDATES
from tests.support.tiers import matrix
from tests.support.zoo import ZOO

DOCS = ROOT / "docs"
INSIDE = (DOCS / "inside.md").read_text()
PROMISES = (DOCS / "promises.md").read_text()
PRIVATE = PACKAGE / "_private"


@pytest.mark.parametrize(
    "name", [*keras_trainer.trainer_methods(), *keras_optimizer.lowered_functions()]
)
def test_everything_that_is_patched_is_listed(name: str) -> None:
    assert f"`{name}`" in INSIDE


@pytest.mark.parametrize(
    "name", sorted(p.name for p in PRIVATE.glob("*.py") if p.name != "__init__.py")
)
def test_every_file_of_private_names_is_listed(name: str) -> None:
    assert f"| `{name}` |" in INSIDE


def test_the_files_that_it_names_exist() -> None:
    named = re.findall(r"`(?:keras_sgd_plus/)?(_\w+(?:/\w+\.py)?)`", INSIDE)
    folders = {name for name in named if name.count("/") or name in _folders()}
    assert len(folders) > 15
    missing = [n for n in folders if not (PACKAGE / n).exists()]
    assert missing == []


def _folders() -> set[str]:
    return {p.name for p in PACKAGE.iterdir() if p.is_dir()}


# The recipes and the callbacks are default tests; the others are rows of the matrix.
OFTEN = ("averages", "recipes", "records")
SELDOM = tuple(
    path.stem
    for path in sorted(DOCS.glob("*.md"))
    if blocks_of(path.read_text()) and path.stem not in OFTEN
)


@pytest.mark.parametrize("page", [*OFTEN, *matrix(*SELDOM)])
@pytest.mark.filterwarnings("ignore:Every loss and gradient should be finite")
def test_blocks_run(
    page: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of((DOCS / f"{page}.md").read_text())
    assert blocks
    for block in blocks:
        lines, said = printed_and_said(block, tmp_path, capsys)
        assert lines == said != []


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_page_opens_with_who_needs_it(path: Path) -> None:
    _, first, *_ = path.read_text().split("\n\n")
    assert first.startswith("This page is for readers who"), first


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted(DOCS.glob("*.md")),
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: "/".join(path.parts[-2:]))
def test_links_lead_somewhere(path: Path) -> None:
    """To files that exist, and to headings that they have."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto")):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        if anchor:
            assert anchor in _anchors(found.read_text()), target


def _anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
    return set(plain)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    named = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    assert named == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_statements_that_rest_on_tables() -> None:
    """The counts in the text are those of the benchmark's table."""
    rows = kept.read("equality", Model)
    equal = [row.id for row in rows if row.bit_equal]
    said = " ".join(PROMISES.split())
    assert f"{len(equal)} of the {len(rows)} models are equal" in said
    others = ", ".join(f"`{row.id}`" for row in rows if not row.bit_equal)
    assert f"(all but {others})" in said


def test_counts_of_what_is_promised() -> None:
    counted = {
        "{} kinds of model, every option of SGD": len(ZOO),
        "{} kinds of model and options, groups": len(test_skip.CASES),
        "{} times SIGKILL": test_exact_resume.NUM_KILLS,
        "{} kinds of wrong data": len(test_exact_resume_refuses.REFUSED),
        "{} models and options for 500 updates": len(test_tables.CASES),
    }
    said = {text: text.format(number) in PROMISES for text, number in counted.items()}
    assert all(said.values()), said
    assert len(test_live_settings.CHANGES) == 10
    assert "ten settings, changed between fits" in PROMISES
    assert UPDATES == 500


def test_the_tests_that_promises_name_exist() -> None:
    named = re.findall(r"`(\w+/(?:test_\w+\.py)?)(?:::(\w+))?`", PROMISES)
    assert len(named) >= 18
    for path, function in named:
        found = ROOT / "tests" / path
        assert found.exists(), path
        assert not function or f"def {function}(" in found.read_text(), function
