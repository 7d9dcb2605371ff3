"""The package's docstrings as reStructuredText: ``*``, ``|`` and a last ``_`` are what they say.

Indented blocks are code or formulas, as in Markdown.
"""

import re

# A doctest to its end; what stands between double backticks; a word between single stars, which is emphasis.
KEPT = re.compile(r"(``.*?``|(?<![\w*(])\*[a-z]+\*(?!\w))")


def as_rst(lines: list[str]) -> list[str]:
    r"""Return the lines of a docstring with its mathematics escaped and its indented blocks marked.

    >>> as_rst(["A tensor (B, *event), log |det J|, of ``*args``:", "", "    x * y"])
    ['A tensor (B, \\*event), log \\|det J\\|, of ``*args``:', '', '::', '', '    x * y']
    """
    out: list[str] = []
    literal: int | None = None  # the indentation of an indented block
    doctest = False
    text = 0  # the indentation of the last line of text
    for line in lines:
        indent = len(line) - len(line.lstrip())
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>> "))
        if line.strip() and literal is not None and indent < literal:
            literal = None
        if line.strip() and literal is None and out and not out[-1].strip() and indent > text and not doctest:
            out += [" " * text + "::", ""]
            literal = indent
        kept = doctest or literal is not None
        out.append(line if kept else _escaped(line))
        if line.strip() and literal is None:
            text = indent
    return out


def _escaped(line: str) -> str:
    parts = KEPT.split(line)
    return "".join(part if i % 2 else re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for i, part in enumerate(parts))
