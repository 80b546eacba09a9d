"""The package's page on an index: its addresses, and the README with links that work.

An index shows the README far from the repository, where relative links are dead. With
the repository's address they become links to the files of the released version. Without
one they become plain text. The address is `repository` in pyproject.toml, table
`[tool.hatch.metadata.hooks.custom]`.
"""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_ABSOLUTE = re.compile(r"(?:https?|mailto):")
_FENCE = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)


def readme_of_index(text: str, repository: str, version: str) -> str:
    """The README for an index: no link of it is relative.

    Args:
        text: Markdown.
        repository: its address, or "".
        version: the release, whose tag is `v<version>`.
    """

    def absolute(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if _ABSOLUTE.match(target):
            return match[0]
        if not repository:
            return f"(Figure in the repository: {label}.)" if image else label
        path = f"README.md{target}" if target.startswith("#") else target
        folder = "raw" if image else "blob"
        return f"{image}[{label}]({repository}/{folder}/v{version}/{path})"

    parts = _FENCE.split(text)  # code stands at odd places
    parts[::2] = [_LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)


def urls(repository: str, version: str) -> dict[str, str]:
    """`[project.urls]`: none without an address."""
    if not repository:
        return {}
    files = f"{repository}/blob/v{version}"
    return {
        "Homepage": repository,
        "Documentation": f"{files}/README.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def get_metadata_hook() -> Any:
    """The hook that hatchling looks for; a build alone has hatchling."""
    from hatchling.metadata.plugin.interface import MetadataHookInterface

    class PackagePage(MetadataHookInterface):
        def update(self, metadata: dict[str, Any]) -> None:
            with open(f"{self.root}/keras_sgd_plus/__init__.py") as file:
                found = re.search(r'^__version__ = "(.+)"$', file.read(), flags=re.M)
            if found is None:
                raise ValueError("keras_sgd_plus/__init__.py has no __version__")
            repository, version = self.config["repository"].rstrip("/"), found[1]
            with open(f"{self.root}/README.md", encoding="utf-8") as file:
                text = readme_of_index(file.read(), repository, version)
            metadata["readme"] = {"content-type": "text/markdown", "text": text}
            metadata["urls"] = urls(repository, version)

    return PackagePage
