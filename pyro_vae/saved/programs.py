"""``save_vae`` and ``load_vae``: a program of any parts in a folder, read without running code from it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.files import CheckpointError, expanded, read_bytes, write_whole
from pyro_vae.program import check_has, held_by
from pyro_vae.random import seeded
from pyro_vae.saved.contents import decode, encode, own_tensors
from pyro_vae.saved.descriptions import Undescribable, built, described
from pyro_vae.saved.memory import LimitedMemory
from pyro_vae.saved.old_runs import METRICS, OLD_PARAMETERS, load_old
from pyro_vae.structure import difference, structure

PARAMETERS = "model.safetensors"
FORMAT = 4  # the first without a description of the parts was 3, see ``old_runs``
FACTORY = (
    "save its parameters alone, save_vae(vae, folder, parameters_only=True), and load them by load_vae(folder, "
    "factory=build), build being your function without arguments that makes the program"
)


def save_vae(vae: nn.Module, folder: Path | str, *, parameters_only: bool = False, overwrite: bool = False) -> None:
    """Save a program, such as a ``VAE`` or a ``Conditional``, in a folder, from which ``load_vae`` makes it again.

    The folder then holds one file, model.safetensors: the parameters and buffers and, as metadata, the class and the
    arguments of each part. It is written whole or not at all, and only after a program that is made from it was found
    equal to this one, in every attribute. Dtypes, frozen parameters, training modes and shared parts are kept.

    Args:
        vae: a program whose parts are this library's, with networks of these and of torch's layers.
        folder: is made if it is not there.
        parameters_only: for a program with parts of your own: keep the parameters and what the parts are called.
            ``load_vae`` then wants the function that makes the program.
        overwrite: replace a program that the folder holds.

    Raises ValueError, before anything is written, for a part that cannot be described or was changed since it was made,
    FileExistsError where the folder holds a program and for the folder of a run, and CheckpointError if it cannot be
    written.

    >>> import tempfile
    >>> from pyro_vae import VAE, guides, likelihoods, networks, priors
    >>> likelihood = likelihoods.Bernoulli(networks.MLPDecoder(2, (1, 8, 8), maps=1))
    >>> vae = VAE(priors.StandardNormal(2), likelihood, guides.MeanField(networks.MLPEncoder((1, 8, 8)), 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_vae(vae, folder)
    ...     again = load_vae(folder)
    >>> type(again.likelihood).__name__, torch.equal(again.posterior.head.weight, vae.posterior.head.weight)
    ('Bernoulli', True)
    """
    check_has(vae, "model", "guide")
    content = encoded_program(vae, parameters_only=parameters_only)
    folder = expanded(folder)
    if (folder / METRICS).exists():
        raise FileExistsError(f"{folder} is the folder of a run; give the program a folder of its own")
    if (folder / PARAMETERS).exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a program; give another folder, or overwrite=True")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made ({error.strerror}); give another folder") from error
    write_whole(folder / PARAMETERS, content)


def load_vae(
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    factory: Callable[[], nn.Module] | str | None = None,
) -> Any:
    """Load the program that ``save_vae``, or a run of ``pyro-vae train``, left in a folder, onto a device.

    It is a ``VAE``, a ``Conditional`` where ``--conditional`` has trained it, or what else was saved. Folders of
    earlier versions are read too. No code runs that the folder names: its parts are found in a table of this library's
    classes and of torch's layers. Its parameters are tensors and nothing else, and its parts may take no more memory
    than these. torch's random numbers are left as they are.

    Args:
        folder: of a program or a run.
        device: of the parameters.
        factory: for a program that was saved by ``parameters_only=True``, and for no other: a function without
            arguments that makes it, or the name of one, ``"module:function"``. The program that it returns must have
            the classes, the attributes and the parameters of the one that was saved.

    Raises CheckpointError for a folder without a program, for one that is damaged, is of a later version or does not
    fit the factory. ValueError where a factory is given for a folder that describes its program.

    >>> load_vae("nowhere")
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: nowhere holds no program: there is no model.safetensors in it
    """
    folder = expanded(folder)
    path = folder / PARAMETERS
    if not path.exists() and (folder / OLD_PARAMETERS).exists():
        _check_no_factory(factory, folder)
        return load_old(folder).to(device)
    if not path.exists():
        raise CheckpointError(f"{folder} holds no program: there is no {PARAMETERS} in it")
    header, tensors = decode(read_bytes(path), path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header.get('format')!r}, where this version of pyro_vae reads {FORMAT}"
        )
    if header.get("parts") is None:
        return _from_factory(factory, header, tensors, path).to(device)
    _check_no_factory(factory, folder)
    try:
        return _with_state(_built(header, tensors), header, tensors).to(device)
    except Exception as error:  # of any kind, since the description may be anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise CheckpointError(f"{folder} holds no program that can be loaded: {reason}") from error


def encoded_program(vae: nn.Module, *, parameters_only: bool = False) -> bytes:
    """Return the content of the file of a program; the errors are those of ``save_vae``."""
    tensors, made_of = own_tensors(vae), structure(vae)
    header = {"format": FORMAT, "parts": None, **_modes(vae)}
    if parameters_only:
        return encode({**header, "structure": made_of}, tensors)
    header["parts"] = parts_of(vae)
    content = encode(header, tensors)
    header, tensors = decode(content, "the program")
    again = _built(header, tensors)
    other = difference(made_of, structure(again))
    if other is not None:
        raise ValueError(
            f"program: it is not what its arguments make, since it was changed after it was made: {other} (first the "
            f"program, then what would be loaded); make it by its arguments, or {FACTORY}"
        )
    _with_state(again, header, tensors)
    return content


def parts_of(vae: nn.Module) -> Any:
    """Return the description of a program's parts; raise ValueError, with the cure, where there is none."""
    try:
        return described(vae)
    except Undescribable as error:
        inner = held_by(vae)
        cure = f"save the program that it wraps, save_vae(vae.{inner}, folder), or " if inner else ""
        raise ValueError(f"{error}; {cure}{FACTORY}") from None


def _modes(vae: nn.Module) -> dict[str, Any]:
    """Return what is kept of a program beside parts and tensors: frozen parameters, training modes."""
    frozen = [name for name, value in vae.named_parameters() if not value.requires_grad]
    other = [name for name, module in vae.named_modules() if module.training != vae.training]
    return {"training": vae.training, "in the other mode": other, "frozen": frozen}


def _built(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    with seeded(0), LimitedMemory(sum(value.numel() * value.element_size() for value in tensors.values())):
        return built(header["parts"])


def _with_state(program: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Give a program the tensors, frozen parameters and modes of a file; raise ValueError where one does not fit."""
    first, state = own_tensors(program), {}
    if first.keys() != tensors.keys():
        odd = sorted(first.keys() ^ tensors.keys())
        raise ValueError(f"the parts have other parameters than the file: {', '.join(odd[:3])}")
    of = {
        id(value): nn.Parameter(tensors[name], value.requires_grad)
        if isinstance(value, nn.Parameter)
        else tensors[name]
        for name, value in first.items()
    }
    for name, value in program.state_dict(keep_vars=True).items():
        state[name] = of[id(value)]  # one parameter for all names, else it would be shared no more
    program.load_state_dict(state, assign=True)
    modules = dict(program.named_modules())
    program.train(header["training"])
    for name in header["in the other mode"]:
        modules[name].training = not header["training"]
    frozen = {id(program.get_parameter(name)) for name in header["frozen"]}
    for parameter in program.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    return program


def _from_factory(factory: Any, header: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> nn.Module:
    if factory is None:
        raise CheckpointError(
            f"{path} holds the parameters of a program with parts of its own; write load_vae({str(path.parent)!r}, "
            "factory=build), build being your function without arguments that makes it"
        )
    program = _function(factory)()
    check_has(program, "model", "guide")
    try:
        other = difference(header["structure"], structure(program))
        if other is not None:
            raise ValueError(f"{other} (first as it was saved, then as the factory made it)")
        return _with_state(program, header, tensors)
    except Exception as error:  # of any kind, since the header may be anything
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{path}: the factory makes another program than was saved: {reason}") from error


def _function(factory: Callable[[], nn.Module] | str) -> Callable[[], nn.Module]:
    if callable(factory):
        return factory
    module, _, name = str(factory).partition(":")
    if not module or not name:
        raise ValueError(f"factory: wanted a function, or its name as 'module:function', got {factory!r}")
    return getattr(import_module(module), name)


def _check_no_factory(factory: Any, folder: Path) -> None:
    if factory is not None:
        raise ValueError(f"factory: {folder} describes its own program; write load_vae({str(folder)!r})")
