"""Names in the code of a function: variables that it reads, attributes, modules that it imports, names in strings."""

import dis
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from itertools import accumulate
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

LONGEST_NAME = 200
BY_STRING = {"eval", "exec", "getattr", "globals", "vars", "attrgetter", "__dict__"}  # read what a string names
BY_MODULE = {"import_module", "modules", "__import__"}  # find the module that a string names
NAME = re.compile(r"[^\W\d]\w*")


class Names(NamedTuple):
    """The names in a function, those of inner functions included.

    Attributes:
        read: global variables that it reads.
        occurring: all names, those of attributes too.
        imported: modules that it imports, relative ones with their dots.
        strings: short strings.
    """

    read: set[str]
    occurring: set[str]
    imported: set[str]
    strings: set[str]


@cache
def names_of(code: CodeType) -> Names:
    """Return the names in a code object. What ``getattr``, ``eval`` and the like read counts if a string names it.

    >>> def rate():
    ...     import torch.nn
    ...     return getattr(settings, "beta") * scale
    >>> names = names_of(rate.__code__)
    >>> sorted(names.read), sorted(names.imported), sorted(names.strings)
    (['beta', 'getattr', 'scale', 'settings'], ['torch.nn'], ['beta'])
    """
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    read = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imports = [i for i, step in enumerate(steps) if step.opname == "IMPORT_NAME"]
    imported = {"." * steps[i - 2].argval + steps[i].argval for i in imports}  # the level is loaded before the names
    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    named = {name for text in texts for name in NAME.findall(text)} if BY_STRING & set(code.co_names) else set()
    strings = {text for text in texts if len(text) <= LONGEST_NAME}
    inner = [names_of(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = Names(read | named, set(code.co_names) | named, imported, strings)
    return Names(*(mine.union(*(names[i] for names in inner)) for i, mine in enumerate(own)))


def names_in(function: FunctionType) -> Names:
    """Return the names in a function, with those in strings that are its variables.

    >>> name = "beta"
    >>> def function():
    ...     return getattr(torch, name)
    >>> "beta" in names_in(function).occurring
    True
    """
    names = names_of(function.__code__)
    held = [function.__globals__.get(name) for name in names.read]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not bound yet
            held.append(cell.cell_contents)
    texts = {text for text in held if isinstance(text, str) and len(text) <= LONGEST_NAME}
    occurring = names.occurring | texts if BY_STRING & names.occurring else names.occurring
    return names._replace(occurring=occurring, strings=names.strings | texts)


def imported_modules(function: FunctionType) -> list[ModuleType]:
    """Return the modules that a function imports when it runs, and the packages that they are in, if they are loaded.

    >>> def function():
    ...     import os.path
    >>> [module.__name__ for module in imported_modules(function)][:1]
    ['os']
    """
    package = function.__globals__.get("__package__") or ""
    found: dict[str, ModuleType] = {}
    names = names_in(function)
    by_string = names.strings & sys.modules.keys() if BY_MODULE & names.occurring else set[str]()
    for name in sorted(names.imported | by_string):
        if name.startswith(".") and not package:
            continue
        parts = resolve_name(name, package).split(".")
        found |= {whole: sys.modules[whole] for whole in accumulate(parts, "{}.{}".format) if whole in sys.modules}
    return list(found.values())
