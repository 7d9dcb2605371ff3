"""Records of what words can choose: options, and parts with the options that they take.

The tables of ``config`` consist of them. Command lines, ``--help``, saved settings and their checks, error messages and
the tables of the documentation follow from them.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = LazyModule("torch")

LARGEST_SIZE = 1 << 20  # of any layer, code or image
MOST_LAYERS = 100


class Words(Mapping[str, Any]):
    """Words, each with a function of no arguments that returns what the word stands for.

    It is called when the word is looked up, so that a command line can list the words without importing torch.

    >>> types = Words(float32=lambda: torch.float32, bfloat16=lambda: torch.bfloat16)
    >>> list(types), types["bfloat16"]
    (['float32', 'bfloat16'], torch.bfloat16)
    """

    def __init__(self, **meanings: Callable[[], Any]):
        self._meanings = meanings

    def __getitem__(self, word: str) -> Any:
        return self._meanings[word]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._meanings)

    def __len__(self) -> int:
        return len(self._meanings)

    def __contains__(self, word: object) -> bool:
        return word in self._meanings

    __eq__ = object.__eq__  # that of Mapping would look all words up


@dataclass(frozen=True)
class Option:
    """A setting: an option of command lines, and an entry of saved settings.

    Attributes:
        name: as Python has it, such as ``flow_width``; command lines have ``--flow-width``.
        type: converts a word to the value: ``int``, ``float`` or ``str``.
        default: the value if none is given; None if it depends on other settings.
        help: for ``--help``, which adds the parts that take the option, and its default.
        choices: the words allowed; of a mapping, parts get what the word stands for.
        metavar: the name of the value in ``--help``.
        nargs: ``"+"`` or ``"*"`` for a tuple of values.
        largest: the largest whole number that saved settings may have.
    """

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: Collection[str] | None = None
    metavar: str | None = None
    nargs: str | None = None
    largest: int = LARGEST_SIZE

    @property
    def flag(self) -> str:
        """The option on a command line."""
        return flag(self.name)

    def parts(self) -> list["Part"]:
        """Return the parts among which the option chooses; none if it chooses something else."""
        choices = self.choices.values() if isinstance(self.choices, dict) else ()
        return [choice for choice in choices if isinstance(choice, Part)]

    def meaning(self, value: Any) -> Any:
        """Return the value that a part gets; a word is replaced by what it stands for."""
        return self.choices[value] if isinstance(self.choices, Mapping) else value

    def check(self, value: Any) -> None:
        """Raise ValueError unless saved settings may have this value."""
        if self.choices is not None:
            if not isinstance(value, str) or value not in self.choices:
                raise ValueError(f"{self.name}: wanted one of {', '.join(self.choices)}, got {value!r}")
        elif self.nargs is not None and value is not None:
            if not isinstance(value, tuple) or len(value) > MOST_LAYERS:
                raise ValueError(f"{self.name}: wanted a tuple of at most {MOST_LAYERS} numbers, got {value!r:.100}")
            for number in value:
                self._check_one(number)
        elif value is not None or self.default is not None:
            self._check_one(value)

    def _check_one(self, value: Any) -> None:
        if self.type is int:
            check_size(self.name, value, self.largest)
        elif self.type is float:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{self.name}: wanted a finite number, got {value!r:.100}")
        elif not isinstance(value, str):
            raise ValueError(f"{self.name}: wanted a word, got {value!r:.100}")

    def described(self, takers: Sequence[str] = ()) -> str:
        """Return the help, with the parts that take the option in front and those to choose from behind."""
        text = f"{', '.join(takers)}: {self.help}" if takers else self.help
        if parts := self.parts():
            text += ": " + "; ".join(f"{part.word}, {part.help}" for part in parts)
        return text


@dataclass(frozen=True)
class Part:
    """One choice of a table: its word, what builds it, and the options that it takes.

    ``build(*arguments, **options)`` gets the arguments of its table and exactly the options of this record. ``shapes``,
    called in the same way, gives the shapes of the large parameters of a part that cannot be built on torch's meta
    device.

    >>> from types import SimpleNamespace
    >>> from torch import nn
    >>> layer = Part("dense", nn.Linear, "a dense layer", (Option("out_features", int, 5, "width"),))
    >>> layer(SimpleNamespace(out_features=7), 3)
    Linear(in_features=3, out_features=7, bias=True)
    """

    word: str
    build: Callable[..., Any]
    help: str
    options: tuple[Option, ...] = ()
    shapes: Callable[..., Iterable[tuple[int, ...]]] | None = None

    def __call__(self, settings: Any, *arguments: Any) -> Any:
        """Build the part with its options as the attributes of ``settings`` have them."""
        return self.build(*arguments, **self._taken(settings))

    def parameter_shapes(self, settings: Any, *arguments: Any) -> list[tuple[int, ...]]:
        """Return the shapes of the large parameters that the part would have, without taking memory for them."""
        if self.shapes is not None:
            return list(self.shapes(*arguments, **self._taken(settings)))
        with torch.device("meta"):
            return shapes_of(self(settings, *arguments))

    def _taken(self, settings: Any) -> dict[str, Any]:
        return {option.name: option.meaning(getattr(settings, option.name)) for option in self.options}


def shapes_of(module: "nn.Module") -> list[tuple[int, ...]]:
    """Return the shapes of the parameters of a module."""
    return [tuple(parameter.shape) for parameter in module.parameters()]


def table(*parts: Part) -> dict[str, Part]:
    """Return the parts by their words; ValueError if two have the same word."""
    words = [part.word for part in parts]
    if len(set(words)) < len(words):
        raise ValueError(f"table: wanted a word of its own for each part, got {', '.join(words)}")
    return dict(zip(words, parts))


def options_of(*slots: Option) -> dict[str, Option]:
    """Return the options of all parts that the slots choose from, by name; ValueError if two share a name.

    A slot is an option that chooses a part, such as ``--prior``.
    """
    found: dict[str, Option] = {}
    for option in (option for slot in slots for part in slot.parts() for option in part.options):
        if found.setdefault(option.name, option) != option:
            raise ValueError(f"{option.name}: wanted one option of this name, got two that differ; use one record")
    return found


def taken_by(*slots: Option) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return, for each option that not all parts take, the words of the parts that take it, by slot."""
    takers: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, option in options_of(*slots).items():
        words = {slot.name: tuple(part.word for part in slot.parts() if option in part.options) for slot in slots}
        if any(0 < len(words[slot.name]) < len(slot.parts()) for slot in slots):
            takers[name] = {slot: taking for slot, taking in words.items() if taking}
    return takers


def flag(name: str) -> str:
    """Return the option on a command line.

    >>> flag("flow_width")
    '--flow-width'
    """
    return f"--{name.replace('_', '-')}"


def check_size(name: str, value: Any, largest: int = LARGEST_SIZE) -> None:
    """Raise ValueError unless the value is a whole number from 1 to ``largest``."""
    if type(value) is not int or not 1 <= value <= largest:
        raise ValueError(f"{name}: wanted a whole number from 1 to {largest}, got {str(value)[:100]}")


def markdown(slot: Option, title: str) -> Iterator[str]:
    """Yield the lines of two Markdown tables: the parts that a slot chooses from, and their options."""
    yield from (f"| {title} (`{slot.flag}`) | | options |", "| --- | --- | --- |")
    for part in slot.parts():
        word = f"`{part.word}`" + " (default)" * (part.word == slot.default)
        yield f"| {word} | {part.help} | {' '.join(f'`{option.flag}`' for option in part.options)} |"
    yield from ("", "| option | default | |", "| --- | --- | --- |")
    for option in options_of(slot).values():
        values = option.default if isinstance(option.default, tuple) else (option.default,)
        default = "" if option.default is None else f"`{' '.join(map(str, values))}`"
        choices = f" (`{'`, `'.join(option.choices)}`)" if option.choices else ""
        yield f"| `{option.flag}` | {default} | {option.help}{choices} |"
