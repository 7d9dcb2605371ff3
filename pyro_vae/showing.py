"""How results are shown: a title, a table and notes, as text for ``print`` and as HTML for notebooks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from unicodedata import combining

from pyro_vae.printing import printable

LINE = 120  # characters of a line, and of a ``repr``, at most
# No colours: those of the page around, light or dark, are right. Pages without a document type must be told so.
WHOLE = "margin-bottom: 0.6em"
TABLE = "border-collapse: collapse; color: inherit; font-size: inherit"
CELL = "padding: 0.1em 0.5em; min-width: 0; vertical-align: top; text-align:"
SCROLLS = "overflow-x: auto"  # a table wider than the page, rather than the page


@dataclass(frozen=True)
class Shown:
    """What people read of a result; ``str`` is text, and ``html`` the same for a notebook.

    Args:
        title: a line above the table.
        rows: of the table, each a sequence of cells; the first cell names the row.
        columns: the headings. With them all cells but the first are aligned to the right, as numbers are.
        notes: paragraphs below the table; text is wrapped.
        pictures: HTML between the title and the table.

    >>> print(Shown("two dice", [("red", 3), ("blue", 12)], ["die", "sum"], ["fair"]))
    two dice
    die   sum
    red     3
    blue   12
    fair
    >>> Shown("a < b").html()
    '<div style="margin-bottom: 0.6em"><strong>a &lt; b</strong></div>'
    """

    title: str
    rows: Sequence[Sequence[object]] = ()
    columns: Sequence[str] = ()
    notes: Sequence[str] = ()
    pictures: str = ""

    def __str__(self) -> str:
        cells = [[str(cell) for cell in row] for row in ([self.columns] if self.columns else []) + list(self.rows)]
        widths = [max(map(_width, column)) for column in zip(*cells)]
        lines = ["  ".join(self._aligned(cell, widths[i], i) for i, cell in enumerate(row)).rstrip() for row in cells]
        notes = [line for note in self.notes for line in wrap(note, LINE)]
        return printable("\n".join([self.title, *lines, *notes]))

    def html(self) -> str:
        """Return the HTML of title, pictures, table and notes, without scripts, style sheets or colours."""
        title = f"<strong>{escape(self.title)}</strong>"
        return f'<div style="{WHOLE}">{title}{self.pictures}{self._table()}{_paragraphs(self.notes)}</div>'

    def _aligned(self, cell: str, width: int, place: int) -> str:
        space = " " * (width - _width(cell))
        return space + cell if self.columns and place else cell + space

    def _table(self) -> str:
        head = "".join(_row(self.columns, "right", "th") for _ in self.columns[:1])
        body = "".join(_row(row, "right" if self.columns else "left") for row in self.rows)
        return f'<div style="{SCROLLS}"><table style="{TABLE}">{head}{body}</table></div>' if body else ""


def _width(text: str) -> int:
    """Return the width of a text in a terminal, where an accent as in k̂ takes no place of its own."""
    return sum(not combining(character) for character in text)


def _row(cells: Sequence[object], align: str, tag: str = "td") -> str:
    whole = "; white-space: nowrap" if (align, tag) == ("right", "td") else ""  # never 2.95e- and 4 on two lines
    sides = ["left" + whole, *[align + whole] * (len(cells) - 1)]
    written = (f'<{tag} style="{CELL} {side}">{escape(str(cell))}</{tag}>' for cell, side in zip(cells, sides))
    return f"<tr>{''.join(written)}</tr>"


def _paragraphs(notes: Iterable[str]) -> str:
    return "".join(f'<div style="margin-top: 0.4em">{escape(note)}</div>' for note in notes if note)


def on_one_line(text: str) -> str:
    """Shorten a ``repr`` to one line of at most 120 characters, which ends as it began.

    >>> on_one_line("Split(images: 3)"), len(on_one_line(f"Split({'x' * 200})"))
    ('Split(images: 3)', 120)
    """
    text, end = printable(" ".join(text.split())), printable("…)")
    return text if len(text) <= LINE else text[: LINE - len(end)].rstrip(" ,") + end
