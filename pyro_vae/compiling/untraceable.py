"""Programs that cannot be traced: the exception, and the advice that its messages give."""

import sysconfig
import traceback
from pathlib import Path

import pyro
import torch

IN_PLACE = (
    "hold such a value in a tensor and change it in place, as handlers.KLWeighted does: "
    'self.register_buffer("beta", torch.tensor(0.5)), then self.beta.fill_(0.7)'
)
OR_EAGERLY = 'or run eagerly, by engine="eager"'
NOT_THE_SAME = (
    "the compiled graph is not what the program does on the same random numbers ({}): the program depends on "
    "something that a trace does not see, such as a clock, an iterator or a hook"
)
NOT_AS_NOW = (
    "a compiled graph is not any more what the program does on the same random numbers ({}): a value has changed that "
    "is not watched{}"
)


class Untraceable(ValueError):
    """Raised for a program that cannot be traced, and for any program where there is no compiler.

    A program cannot be traced if its operations depend on the values of its tensors, or if it keeps parameters or
    random numbers where tracing cannot follow them.
    """


class StaleGraph(UserWarning):
    """Some results came from a graph that was not the program's any more; the message says which, and the cure."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has no message.

    >>> first_line(ValueError("no number")), first_line(KeyError())
    ('no number', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def explanation(error: Exception) -> str:
    """Say why a program could not be traced, and in which line of the user's program."""
    ours = [str(Path(file).parent) for file in (torch.__file__, pyro.__file__, __file__)]
    standard = sysconfig.get_paths()["stdlib"]

    def is_foreign(file: str) -> bool:
        in_python = file.startswith(standard) and "site-packages" not in file
        return file.startswith((*ours, "<")) or in_python

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_foreign(frame.filename)]
    at = f" at {frames[-1].filename}, line {frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
    return (
        f"the program cannot be traced{at} ({type(error).__name__}: {first_line(error)}). What it does must "
        f"not depend on the values of tensors: take that line away, write it with torch.where, {OR_EAGERLY}"
    )
