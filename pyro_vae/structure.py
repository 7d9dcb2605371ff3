"""What a program is made of, beside the values of its parameters: by it two programs are compared."""

import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_load_state_dict_post_hooks"),
)
COMPUTING = (SpectralNorm, WeightNorm)  # hooks that give a layer its weight anew before each call
WRITTEN = (float, complex, bytes, range, slice, torch.dtype, torch.device)  # whose ``repr`` says all
INTERNAL = set(vars(nn.Module())) | {"_arguments", "_compiled_call_impl"}


def structure(program: nn.Module) -> dict[str, Any]:
    """Return the class, the attributes and the hooks of each module, tensors that are shared or not in the state.

    All of it is plain, so that JSON holds it. Parameters that are frozen and training modes are left out.

    >>> structure(nn.Flatten())["modules"]
    {'': {'class': 'torch.nn.modules.flatten.Flatten', 'start_dim': 1, 'end_dim': -1}}
    """
    modules = {path: _of_module(module) for path, module in program.named_modules(remove_duplicate=False)}
    return {"modules": modules, "shared": shared_names(program), "kept apart": dict(_not_in_the_state(program))}


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return in words the first thing in which two structures differ, None if they are equal.

    >>> difference(structure(nn.Flatten()), structure(nn.Flatten(0)))
    'its Flatten: start_dim is 1 in one and 0 in the other'
    """
    for path in [*first["modules"], *second["modules"]]:  # from the outermost inwards
        one, other = first["modules"].get(path), second["modules"].get(path)
        if one != other:
            return _of_modules(path, one or {}, other or {})
    for key in ("shared", "kept apart"):
        if first[key] != second[key]:
            return f"the tensors that are {key} are {first[key]} in one and {second[key]} in the other"
    return None


def shared_names(program: nn.Module) -> list[list[str]]:
    """Return the names in the state dict of each tensor that has several.

    >>> layer = nn.Linear(2, 2)
    >>> shared_names(nn.Sequential(layer, layer))
    [['0.weight', '1.weight'], ['0.bias', '1.bias']]
    """
    names: dict[int, list[str]] = {}
    for name, value in program.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _of_module(module: nn.Module) -> dict[str, Any]:
    left_out = INTERNAL | {hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, COMPUTING)}
    attributes = {name: _plain(value) for name, value in vars(module).items() if name not in left_out}
    hooks = {name: len(getattr(module, name)) for name in HOOKS if getattr(module, name, None)}
    learned = {name: "a parameter" for name, value in module._parameters.items() if value is not None}
    return {"class": _name(type(module)), **attributes, **hooks, **learned}


def _of_modules(path: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    kind = (one or other)["class"].rpartition(".")[2]
    where = f"its {path or kind}"
    if not one or not other:
        return f"{where}, a {kind}, is only in one"
    key = next(key for key in [*one, *other] if one.get(key, one) != other.get(key, other))
    first, second = (str(values.get(key, "missing"))[:100] for values in (one, other))
    return f"{where}: {key} is {first} in one and {second} in the other"


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it, other values as other ones."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return ["array", _of_tensor(torch.from_numpy(np.array(value)))]
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(entry)] for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return ["set", sorted((_plain(entry) for entry in value), key=repr)]
    if isinstance(value, functools.partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), _plain(value.tolist())]
    if isinstance(value, WRITTEN) or is_dataclass(value):
        return repr(value)  # also of a float, since that of NaN equals itself
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _not_in_the_state(program: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the buffers that the state dict leaves out, whose values must be those that the constructor gives."""
    kept = program.state_dict().keys()
    for name, value in program.named_buffers():
        if name not in kept:
            yield name, _of_tensor(value)


def _of_tensor(value: Tensor) -> str:
    data = value.detach().cpu().contiguous()
    digest = zlib.crc32(data.flatten().view(torch.uint8).numpy().data) if data.numel() else 0
    return f"{value.dtype} {tuple(value.shape)} {digest:08x}"
