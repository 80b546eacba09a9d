"""What an index shows of the package: its addresses, and a README whose links work."""

from __future__ import annotations

import re
import runpy
import tomllib
from typing import Any

import pytest

from tests.support.paths import ROOT

HOOK: dict[str, Any] = runpy.run_path(str(ROOT / "hatch_build.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
ADDRESS = "https://example.org/somebody/keras-sgd-plus"
RELATIVE = re.compile(r"\]\((?!https?:)[^)]*\)")


def _linked(repository: str) -> str:
    return HOOK["readme_of_index"](README, repository, "1.2.3")


@pytest.mark.parametrize("repository", ["", ADDRESS], ids=["none", "address"])
def test_no_link_is_relative(repository: str) -> None:
    assert RELATIVE.findall(README)
    assert RELATIVE.findall(_linked(repository)) == []


def test_links_lead_to_files_that_exist() -> None:
    text = _linked(ADDRESS)
    found = re.findall(re.escape(ADDRESS) + r"/(raw|blob)/v1\.2\.3/([^)#]+)", text)
    assert len(found) == len(RELATIVE.findall(README))
    assert [path for _, path in found if not (ROOT / path).is_file()] == []
    images = [path for folder, path in found if folder == "raw"]
    assert len(images) == README.count("![")
    assert all(path.endswith(".svg") for path in images)


def test_code_and_absolute_links_stay() -> None:
    for text in (
        "```python\nrows[i](x)\n```",
        "[a](https://example.org/b)",
        "[c](https://doi.org/10.1016/0041-5553(64)90137-5)",
    ):
        assert HOOK["readme_of_index"](text, ADDRESS, "1") == text
        assert HOOK["readme_of_index"](text, "", "1") == text


@pytest.mark.parametrize(
    ("text", "linked", "plain"),
    [
        ("[a `b`](c/d.md#e)", f"[a `b`]({ADDRESS}/blob/v1/c/d.md#e)", "a `b`"),
        ("[two\nlines](a.md)", f"[two\nlines]({ADDRESS}/blob/v1/a.md)", "two\nlines"),
        ("[up](#set-up)", f"[up]({ADDRESS}/blob/v1/README.md#set-up)", "up"),
        (
            "![Speed](f/s.svg)",
            f"![Speed]({ADDRESS}/raw/v1/f/s.svg)",
            "(Figure in the repository: Speed.)",
        ),
    ],
)
def test_a_link(text: str, linked: str, plain: str) -> None:
    assert HOOK["readme_of_index"](text, ADDRESS, "1") == linked
    assert HOOK["readme_of_index"](text, "", "1") == plain


def test_the_address_has_one_place() -> None:
    """[project.urls] and the README follow from it; nothing else repeats it."""
    repository = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert set(PROJECT["project"]["dynamic"]) == {"readme", "urls", "version"}
    assert HOOK["urls"]("", "1") == {}
    urls = HOOK["urls"](ADDRESS, "1")
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(ADDRESS) for url in urls.values())
    assert not repository or re.fullmatch(r"https://\S+[^/\s]", repository)
