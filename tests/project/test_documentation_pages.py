"""The pages under `docs/` name what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.blocks import blocks_of, printed_and_said
from tests.support.internals import keras_optimizer, keras_trainer
from tests.support.paths import PACKAGE, ROOT
from tests.support.tiers import matrix

DOCS = ROOT / "docs"
INSIDE_PAGE = DOCS / "development" / "inside.md"  # one of those for authors
INSIDE = INSIDE_PAGE.read_text()
PROMISES = (DOCS / "promises.md").read_text()
PRIVATE = {p.name for p in (PACKAGE / "_private").glob("*.py")} - {"__init__.py"}


def test_what_reaches_outside_is_listed() -> None:
    """All that is patched, and each file of private names."""
    patched = [*keras_trainer.trainer_methods(), *keras_optimizer.lowered_functions()]
    assert [name for name in patched if f"`{name}`" not in INSIDE] == []
    assert set(re.findall(r"^\| `(\w+\.py)` \|", INSIDE, re.M)) == PRIVATE


@pytest.mark.parametrize("path", [INSIDE_PAGE, ROOT / "CONTRIBUTING.md"])
def test_the_modules_that_a_page_names_exist(path: Path) -> None:
    """Modules as `_room/module.py`, and rooms, of which CONTRIBUTING.md lists all."""
    text = path.read_text()
    named = re.findall(r"`(_\w+(?:/\w+)?\.py)`", text)
    rooms = set(re.findall(r"`(_[a-z]+)`", text))
    assert len(named) + len(rooms) > 10
    assert [n for n in [*named, *rooms] if not (PACKAGE / n).exists()] == []
    folders = {p.name for p in PACKAGE.glob("_*") if (p / "__init__.py").exists()}
    assert path.name != "CONTRIBUTING.md" or folders <= rooms


# The recipes and the callbacks are default tests; the others are rows of the matrix.
OFTEN = ("averages",)
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


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted(DOCS.rglob("*.md")),
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
    named = set(re.findall(r"\]\((\w[\w/-]*\.md)\)", index))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert named == pages - {"README.md"}


def test_the_tests_that_promises_name_exist() -> None:
    named = re.findall(r"`(\w+/(?:test_\w+\.py)?)(?:::(\w+))?`", PROMISES)
    assert len(named) >= 18
    for path, function in named:
        found = ROOT / "tests" / path
        assert found.exists(), path
        assert not function or f"def {function}(" in found.read_text(), function
