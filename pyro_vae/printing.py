"""Text for terminals whose encoding, such as cp1252 or ASCII, lacks some characters: these are spelled out."""

import codecs
import sys
from collections.abc import Mapping, Sequence
from typing import Any

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
    """Spell out the characters of a text that an encoding lacks; by default the encoding of standard output.

    >>> printable("k̂ ≥ 0.7, −86.5 ± 0.2", "ascii")
    'k-hat >= 0.7, -86.5 +- 0.2'
    >>> printable("−86.5 ± 0.2", "cp1252")
    '-86.5 ± 0.2'
    """
    known: str = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(known, HANDLER).decode(known)


def listed(index: Sequence[object], most: int = 10) -> str:
    """Join numbers or names by commas, and only the first ``most`` of them.

    >>> listed([3, 7]), listed(range(100), most=2)
    ('3, 7', '0, 1, …')
    """
    return ", ".join(map(str, index[:most])) + (", …" if len(index) > most else "")


def duration(seconds: float) -> str:
    """Return a time in words, to about a percent.

    >>> duration(3.2), duration(600), duration(9000)
    ('3 s', '10 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def spell_out() -> None:
    """Make all output of this process ``printable``, on standard output and standard error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors=HANDLER)


def estimate(value: float, error: float | None, digits: int = 2, sign: str = "") -> str:
    """Return a mean with its standard error, if it has one; ``sign="+"`` writes a plus before a positive mean.

    >>> estimate(1.234, 0.056), estimate(1.234, None, 1, "+")
    ('1.23 ± 0.06', '+1.2')
    """
    return f"{value:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in words which entries have another value here; nothing where all are the same.

    >>> differences({"seed": 0, "lr": 0.1}, {"lr": 0.2, "seed": 0, "epochs": 3})
    'lr is 0.1 there and 0.2 here'
    """
    differ = [name for name, value in there.items() if value != here.get(name, "absent")]
    return ", ".join(f"{name} is {there[name]!r} there and {here.get(name, 'absent')!r} here" for name in differ)
