"""Command lines: pages of help that show the defaults, and errors that suggest the nearest word."""

import argparse
import sys
import textwrap
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

LONGEST_CHOICE = 36  # characters of choices that stand beside an option; longer ones stand in its text


class Parser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` that shows defaults, and suggests the nearest option or choice for an unknown one.

    Options cannot be shortened, so that a later option changes no command. The usage names what must be given only.

    >>> parser = Parser(prog="pyro-vae train", description="Train a VAE.")
    >>> _ = parser.add_argument("--latent", type=int, default=2, help="dimensions of z")
    >>> print(parser.format_help())
    usage: pyro-vae train [options]
    ...
      --latent LATENT  dimensions of z (default: 2)
    >>> parser.parse_args(["--latent", "3"])
    Namespace(latent=3)
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": Page, "allow_abbrev": False, **options})

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Return the options of a command line; exit with status 2, and a message, for one that is none."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        self.check([word for word in options if word.startswith("--")])
        found, left = self.parse_known_args(words, namespace)
        self.check(left)
        return found

    def check(self, words: Iterable[str]) -> None:
        """Exit with status 2, and a message, for the first word that is no option."""
        for word in (word.partition("=")[0] for word in words):
            if not word.startswith("-"):
                self.error(f"{word}: no option takes it; {self.prog} --help lists all")
            if word not in self._option_string_actions:
                name, options = f"--{word.lstrip('-')}", self._option_string_actions
                self.error(f"{word}: no such option; {suggestion(name, options) or f'{self.prog} --help lists all'}")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 after one line of usage, and a message."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = suggestion(str(value), map(str, action.choices))
            wanted = f"wanted one of {', '.join(map(str, action.choices))}, got {value}"
            raise argparse.ArgumentError(action, f"{wanted}; {near}" if near else wanted)


def suggestion(word: str, words: Iterable[str]) -> str:
    """Return a question for the nearest of some words; nothing if none is near.

    >>> suggestion("--latnet", ["--latent", "--lik"]), suggestion("--zzz", ["--latent", "--lik"])
    ('did you mean --latent?', '')
    """
    near = get_close_matches(word, list(words), n=1)
    return f"did you mean {near[0]}?" if near else ""


class Page(argparse.HelpFormatter):
    """A page of help with all defaults, long lists of choices in the texts, and code and lists as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = textwrap.dedent(text).strip().split("\n\n")
        kept = " ", "- "  # code, and lists
        whole = [part if part.startswith(kept) else "\n".join(self._split_lines(part, width)) for part in paragraphs]
        return textwrap.indent("\n\n".join(whole), indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # as in --free-bits

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        if usage is None:
            needed = [action for action in actions if action.required and action.option_strings]
            options = [
                f"{action.option_strings[-1]} {self._format_args(action, action.dest.upper())}" for action in needed
            ]
            places = [self._format_args(action, action.dest) for action in actions if not action.option_strings]
            usage = " ".join(["%(prog)s", *places, *options, "[options]"])
        return super()._format_usage(usage, actions, groups, prefix)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if action.metavar is None and self._is_long(action):
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _format_action(self, action: argparse.Action) -> str:
        action.help = action.help or _default(action) or None
        return super()._format_action(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, choices = action.help or "", action.choices or ()
        text, paren, default = text.partition("(default")
        default = paren + default or _default(action)
        if self._is_long(action) and any(str(choice) not in text for choice in choices):
            text = f"{text.rstrip()}; one of {', '.join(map(str, choices))}"
        return f"{text.rstrip()} {default}".strip()

    @staticmethod
    def _is_long(action: argparse.Action) -> bool:
        return action.choices is not None and len(",".join(map(str, action.choices))) > LONGEST_CHOICE


def _default(action: argparse.Action) -> str:
    """Return what the page says about the default of an option, nothing if it has none."""
    value = action.default
    if action.nargs == 0 or value is None or value == argparse.SUPPRESS:
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"(default: {shown.replace('%', '%%')})" if shown else ""
