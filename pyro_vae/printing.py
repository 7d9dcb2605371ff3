"""Text for terminals that lack some of its characters, such as cp1252 or ASCII: those are spelled out."""

import codecs
import sys
from collections.abc import Sequence

SPELLED = {
    "\u0302": "-hat",
    "−": "-",
    "–": "-",
    "±": "+-",
    "×": "x",
    "·": "*",
    "²": "^2",
    "½": "1/2",
    "√": "sqrt ",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "←": "<-",
    "…": "...",
    "‖": "||",
    "β": "beta",
    "λ": "lambda",
    "σ": "sigma",
    "Σ": "sum",
}
HANDLER = "pyro_vae.spelled"


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _spelled)


def printable(text: str, encoding: str | None = None) -> str:
    """The text with what an encoding lacks spelled out; the encoding of standard output if none is given.

    >>> printable("k̂ ≥ 0.7, −86.5 ± 0.2", "ascii")
    'k-hat >= 0.7, -86.5 +- 0.2'
    >>> printable("−86.5 ± 0.2", "cp1252")
    '-86.5 ± 0.2'
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def listed(index: Sequence[int], most: int = 10) -> str:
    """Whole numbers with commas, the first of them where they are many.

    >>> listed([3, 7]), listed(range(100), most=2)
    ('3, 7', '0, 1, …')
    """
    return ", ".join(map(str, index[:most])) + (", …" if len(index) > most else "")


def spell_out() -> None:
    """From now on whatever is printed is ``printable``, on standard output and standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)
