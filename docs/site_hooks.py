"""Hooks of mkdocs for `make site`: the pages read the same in the repository and as a site.

- Files outside docs/ that a page links to join the site: Markdown as a page, anything else as a file to download. The
  repository's README is the home page.
- Lists, tables and fenced blocks follow CommonMark, as in the repository: a list may begin right after a paragraph, and
  its items may be indented by two spaces. Python-Markdown wants a blank line and four spaces.
- The build fails if a page would load anything from a network.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = {"README.md", "docs/README.md"}
"""Repository paths that lead to the home page of the site."""
ALWAYS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "results/LOG.md"]

FENCE = re.compile(r"^ *(```|~~~)")
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
ITEM = re.compile(r"( *)([-*]|\d+\.) +")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc\s*=\s*["']?(?:https?:)?//[^"'\s>]+
      | <link\b(?![^>]*rel=["']?(?:canonical|next|prev|edit))[^>]*?\bhref\s*=\s*["']?(?:https?:)?//[^"'\s>]+
      | (?:@import|url\()\s*["']?(?:https?:)?//[^"')\s]+""",
    re.X | re.I,
)
"""Resources that a browser would fetch from a network; links to click on are allowed."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give headings the anchors that GitHub and Forgejo give them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and what those pages link to."""
    waiting = [*ALWAYS, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, site_path(path), abs_src_path=str(REPOSITORY / path)))
        for target in links(path) if path.endswith(".md") else ():
            if target not in seen and (REPOSITORY / target).is_file():
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return a page with its links as they are in the site, and its lists as Python-Markdown reads them."""
    source = repository_path(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        place = posixpath.relpath(site_path(target), posixpath.dirname(page.file.src_uri) or ".")
        return found[1] + place + found[3]

    return "\n".join(line if fenced else LINK.sub(moved, line) for line, fenced in python_markdown(markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site whose pages would load something from a network."""
    wrong = [
        f"{path.relative_to(config.site_dir)}: {found}"
        for path in sorted(Path(config.site_dir).rglob("*"))
        if path.suffix in (".html", ".css", ".svg")
        for found in LOADED.findall(path.read_text(encoding="utf-8"))
    ]
    if wrong:
        raise PluginError("these pages would load something from a network:\n" + "\n".join(wrong))


def site_path(path: str) -> str:
    """Return the place in the site of a file in the repository."""
    return "index.md" if path in HOME else path.removeprefix("docs/")


def repository_path(src_uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    if src_uri == "index.md":
        return "README.md"
    return f"docs/{src_uri}" if (REPOSITORY / "docs" / src_uri).is_file() else src_uri


def links(path: str) -> Iterator[str]:
    """Yield the repository paths that a page links to."""
    for line, fenced in python_markdown((REPOSITORY / path).read_text(encoding="utf-8")):
        for _, target, _ in [] if fenced else LINK.findall(line):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def python_markdown(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each line as Python-Markdown reads it, and whether it belongs to a fenced block."""
    items: list[int] = []  # the column at which the content of each open list item begins
    pad, fence, before = "", -1, ""
    for line in text.splitlines():
        body = line.lstrip(" ")
        indent = len(line) - len(body)
        item, is_fence, is_row = ITEM.match(line), bool(FENCE.match(line)), body.startswith("|")
        if fence >= 0:
            yield (pad + line[min(indent, fence) :] if body else ""), True
            if is_fence:
                fence = -1
                yield "", False
                before = ""
            continue
        depth = len(items)
        if body and (item or is_fence or is_row or not before):  # anything else continues the paragraph before it
            while items and indent < items[-1]:
                items.pop()
        begins = is_fence or (is_row and not before.startswith("|")) or (item and depth == 0)
        if before and begins:
            yield "", False
        pad = "    " * len(items)
        inner = max(0, indent - (items[-1] if items else 0))
        yield (pad + " " * inner + body if body else ""), is_fence
        if is_fence:
            fence = indent
        elif item:
            items.append(len(item[0]))
        before = body
