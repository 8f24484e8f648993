"""A hook of MkDocs: the pages at the root of the checkout join the site, with links that fit."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# A link in Markdown or an image: its text, the path it leads to, and the anchor there.
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)((?:#[^)\s]*)?)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages to those under docs/."""
    for name, page in PAGES.items():
        text = _LINK.sub(_from_root, (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links from a page under docs/ to one at the root lead to that page's place in the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        wanted = posixpath.normpath(posixpath.join("docs", folder, target))
        return f"[{text}]({posixpath.relpath(PAGES[wanted], folder or '.')}{anchor})" if wanted in PAGES else link[0]

    return _LINK.sub(inside, markdown)


def _from_root(link: re.Match[str]) -> str:
    """A link of a page at the root, seen from the site's first page; of one that leads out of the site, its text."""
    text, target, anchor = link.groups()
    if target in PAGES:
        return f"[{text}]({PAGES[target]}{anchor})"
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')}{anchor})"
    return text
