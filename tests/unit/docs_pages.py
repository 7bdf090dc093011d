"""Parsing of the documentation: fenced blocks, commands in blocks and in running text, links."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

PAGES = sorted(
    [
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        REPOSITORY / "benchmarks" / "README.md",
        REPOSITORY / "results" / "LOG.md",
        *(path for path in (REPOSITORY / "docs").rglob("*.md")),
    ]
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
SYNOPSIS = re.compile(r"\[([^\s\]$][^\]$]*)\](?=\s|$)")
"""`[--watch]`, `[PATH …]`: optional words are checked as if they were given."""
SHELL_WORDS = {"until", "while", "do", "sudo", "then", "if"}
"""Words that precede a command."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One simple command, as words."""

    place: str
    words: tuple[str, ...]
    shown: str
    """The whole line of the command."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[2], textwrap.dedent(found[3]))


def commands_of(block: Block) -> Iterator[Command]:
    """Yield the simple commands of a block of shell, also those inside `$(…)`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in [*re.findall(r"\$\(([^()]*)\)", line), line]:
            for words in simple(part):
                yield Command(block.label, tuple(words), line.strip())


def simple(line: str) -> Iterator[list[str]]:
    line = re.sub(r"<([\w ]+)>", r"\1", line)  # runs/x/train/<run>
    line = SYNOPSIS.sub(r"\1", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|"):
            while words and words[0] in SHELL_WORDS:
                words = words[1:]
            if words and words[0] not in ("done", "fi", "eval"):
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]
            words = []
        elif set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)


def spans(page: Path) -> Iterator[Command]:
    """Yield the commands named in running text."""
    text = FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    for found in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", text):
        code = found[1].replace("\\|", "|")
        if re.match(r"(hpc-ewc|python3?|make|torchrun) \S", code) and "$" not in code:
            line = text.count("\n", 0, found.start()) + 1
            for words in simple(code):
                yield Command(f"{page.relative_to(REPOSITORY)}:{line}", tuple(words), code)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield file and anchor of every link inside the repository."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Forgejo make them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
