"""Text of others inside Markdown: shown to the letter, never read as markup, link, mention or command."""

from __future__ import annotations

import re

from onnxprune.messages import visible

#: A word that no flavour of Markdown, and no host of comments, makes anything of.
_PLAIN = re.compile(r"[\"'(]*[-+]?[A-Za-z0-9]+(?:[-.,/=%+'][A-Za-z0-9]+)*[\"')%]*[.,;:]?\)?[.,;:]?|[-+=–±→×]")

#: Words of that form that hosts turn into links all the same: addresses, issues, commits.
_LINKED = re.compile(r"www\.|gh-\d|(?=.*[a-f])(?=.*\d)[0-9a-f]{7,40}\W*$", re.IGNORECASE)

#: What would begin a list.
_MARKS_A_LIST = re.compile(r"[-+=]|\d+[.)]")

_TRAILING = ".,;:"


def prose(text: str, longest: int = 300) -> str:
    """Return a sentence for Markdown; words that could be more than words become code."""
    shown: list[str] = []
    waiting: list[str] = []  # neighbours that become code together: names may hold spaces

    def flush() -> None:
        if waiting:
            joined = " ".join(waiting)
            core = joined.rstrip(_TRAILING) or joined
            shown.append(f"{code(core, longest)}{joined[len(core) :]}")
            waiting.clear()

    for word in visible(text, longest).split():
        if (
            _PLAIN.fullmatch(word)
            and not _LINKED.match(word)
            and (shown or not _MARKS_A_LIST.fullmatch(word))
        ):
            flush()
            shown.append(word)
        else:
            waiting.append(word)
    flush()
    return " ".join(shown)


def code(text: str, longest: int = 120) -> str:
    """Return a name as a span of code, which may stand in a cell of a table.

    Nothing inside such a span is markup, but for the bar that ends a cell; the fence is longer than any run
    of backticks in the name. ``##`` would start a command in the logs of some build servers, so it is broken.
    """
    shown = visible(text, longest).replace("##", "#\\x23").strip()
    if not shown:
        return "(no name)"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[0] == "`" or shown[-1] == "`" else ""
    # GitHub reads ``\\|`` as a backslash and the end of a cell, others as a backslash and a bar.
    inside = re.sub(r"\\+(?=\|)", lambda run: "\\x5c" * len(run[0]), shown).replace("|", "\\|")
    return f"{fence}{space}{inside}{space}{fence}"


def table(headings: list[str], rows: list[list[str]], numeric: int = 0) -> str:
    """Return a table of cells that are Markdown already; columns from ``numeric`` on are aligned right."""
    marks = ["---" if not numeric or column < numeric else "---:" for column in range(len(headings))]
    lines = [headings, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(summary: str, text: str) -> str:
    """Return text that is shown once a reader asks for it; ``summary`` is ours, without markup."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
