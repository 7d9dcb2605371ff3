"""The pages of docs/api, one a room: every public name of the package has an entry in exactly one of them.

An entry stands under the shortest name by which a user reaches it, such as ``pyro_vae.fit``, on the page of the room
that holds it. A name without a room of its own is on the page ``pyro_vae``.
"""

import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from docstrings import as_rst

import pyro_vae

TOP = "pyro_vae"
DAILY = ["priors", "likelihoods", "guides", "networks", "estimators", "handlers", "data", "tables", "training"]
DAILY += ["evidence", "comparison", "missing", "imputation", "analysis", "plots", "saved"]


def rooms() -> list[str]:
    """Return the rooms that have a page, those that a user types daily first."""
    packages = {module.name for module in iter_modules(pyro_vae.__path__) if module.ispkg}
    public = {name for name in pyro_vae.__all__ if isinstance(getattr(pyro_vae, name), ModuleType)}
    found = packages | public
    return [room for room in DAILY if room in found] + sorted(found - set(DAILY))


def public_names(module: ModuleType) -> list[str]:
    """Return a module's ``__all__``, or else the public classes and functions that it defines, in their order."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", [name for name in defined if not name.startswith("_")]))


def pages() -> dict[str, str]:
    """Return the text of each page."""
    names = {name: pyro_vae._HOMES.get(name, TOP) for name in pyro_vae.__all__}
    homes = {room: f"{TOP}.{room}" for room in rooms()}
    entries: dict[str, list[str]] = {TOP: [], **{room: [] for room in homes}}
    seen: dict[Any, str] = {}
    for name, home in names.items():
        value = getattr(pyro_vae, name)
        if not isinstance(value, ModuleType):
            page = home.split(".")[1] if home in homes.values() else TOP
            entries[page].append(_entry(f"{TOP}.{name}", value, seen))
    for room, home in homes.items():
        module = import_module(home)
        found = {name: getattr(module, name) for name in public_names(module)}
        for name in sorted(found, key=lambda name: _is_constant(found[name])):
            entries[room].append(_entry(f"{home}.{name}", found[name], seen))
    entries[TOP].insert(0, _contents(list(names)))
    texts = {room: _page(homes.get(room, TOP), found) for room, found in entries.items()}
    return texts | {"index": _index(list(homes))}


def write(folder: Path) -> None:
    """Write the pages that have changed, and delete those of rooms that are gone."""
    folder.mkdir(exist_ok=True)
    texts = {folder / f"{name}.rst": text for name, text in pages().items()}
    for path in set(folder.glob("*.rst")) - set(texts):
        path.unlink()
    for path, text in texts.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _entry(name: str, value: Any, seen: dict[Any, str]) -> str:
    """Return the entry of a name, or a link where what it names has an entry already."""
    if isinstance(value, ModuleType):
        inner = [_entry(f"{value.__name__}.{member}", getattr(value, member), seen) for member in public_names(value)]
        return "\n".join([f".. py:module:: {value.__name__}\n", _summary(value), "", *inner])
    if _is_constant(value):
        return f".. py:data:: {name}\n   :type: {type(value).__name__}\n{_shown(value)}"
    if value in seen:
        return f"``{name.rpartition('.')[2]}`` is :py:obj:`{seen[value]}`.\n"
    seen[value] = name
    if not inspect.isclass(value):
        return f".. autofunction:: {name}\n"
    if issubclass(value, Exception):
        return f".. autoexception:: {name}\n"
    return f".. autoclass:: {name}\n   :members:\n   :inherited-members:\n"


def _is_constant(value: Any) -> bool:
    return not isinstance(value, ModuleType) and not hasattr(value, "__qualname__")


def _shown(value: Any) -> str:
    """Return the value of a constant, the words of a table, or what an option is for."""
    if isinstance(value, int | float | str):
        return f"   :value: {value!r}\n"
    words = ", ".join(f"``{word}``" for word in value) if isinstance(value, Mapping) else getattr(value, "help", "")
    return f"\n   {' '.join(as_rst([words]))}\n" if words else ""


def _page(name: str, entries: list[str]) -> str:
    module = import_module(name)
    return f"{_title(name, '=')}.. py:module:: {name}\n   :no-index-entry:\n\n{_intro(module)}\n\n" + "\n".join(entries)


def _intro(module: ModuleType) -> str:
    """Return the docstring of a module without its lists of files."""
    paragraphs = re.split(r"\n{2,}", inspect.getdoc(module) or "")
    kept = [text for text in paragraphs if not re.match(r"(- )?`*\w+(\.py)?`*(:|  )", text)]
    return "\n".join(as_rst("\n\n".join(kept).splitlines()))


def _index(homes: list[str]) -> str:
    daily = [room for room in homes if room in DAILY]
    parts = {"What you type": [TOP, *daily], "What makes it work": [room for room in homes if room not in DAILY]}
    text = _title("API", "=") + "Every public name, its types, errors and examples, from the docstrings.\n\n"
    for title, names in parts.items():
        text += f"{_title(title, '-')}.. toctree::\n   :maxdepth: 1\n\n   " + "\n   ".join(names) + "\n\n"
    return text


def _contents(names: list[str]) -> str:
    """Return lists of all names of the top level, by their kind."""
    kinds: dict[str, list[str]] = {"Classes": [], "Functions": [], "Warnings and errors": [], "Modules": []}
    for name in names:
        value = getattr(pyro_vae, name)
        error = inspect.isclass(value) and issubclass(value, Exception)
        if isinstance(value, ModuleType) or callable(value):
            kind = "Modules" if isinstance(value, ModuleType) else "Classes" if inspect.isclass(value) else "Functions"
            role = "mod" if kind == "Modules" else "obj"
            line = f"- :py:{role}:`~{TOP}.{name}`: {_summary(value)}\n"
            kinds["Warnings and errors" if error else kind].append(line)
    lists = [_title(kind, "-") + "".join(lines) for kind, lines in kinds.items()]
    return "\n".join([*lists, _title("Entries on this page", "-")])


def _summary(value: Any) -> str:
    return " ".join(as_rst((inspect.getdoc(value) or "").partition("\n\n")[0].splitlines()))


def _title(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}\n\n"
