"""Parts of pages that commands write: each stands between two marks that say which command wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tfprivacy_lab import files

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULT_PAGES = ROOT / "docs" / "results"


class Part(NamedTuple):
    """A text and where it stands."""

    page: Path
    marks: tuple[str, str]
    text: str


def marks(name: str, target: str) -> tuple[str, str]:
    """What stands before and after a part that a target of the Makefile writes."""
    return f"<!-- {name}: written by make {target} -->", f"<!-- /{name} -->"


def between(page: str, marks: tuple[str, str]) -> str:
    """What stands between two marks of a page."""
    return page.split(marks[0])[1].split(marks[1])[0].strip()


def write(parts: list[Part]) -> None:
    """Put every text in its place."""
    for part in parts:
        head, rest = part.page.read_text().split(part.marks[0])
        written = f"{head}{part.marks[0]}\n{part.text}\n{part.marks[1]}{rest.split(part.marks[1])[1]}"
        files.write_bytes(part.page, written.encode())


def select(rows: list[dict], wanted: tuple[dict, ...]) -> list[dict]:
    """The one row that each of ``wanted`` names by some of its values: the rows of a short table, out of a long one.

    Raises:
        ValueError: if one names no row, or several.
    """
    chosen = []
    for values in wanted:
        found = [row for row in rows if all(row.get(name) == value for name, value in values.items())]
        if len(found) != 1:
            raise ValueError(f"Expected one row of {values}, found {len(found)}.")
        chosen += found
    return chosen
