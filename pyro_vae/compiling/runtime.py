"""The part of every library that torch writes alike: compiled once, kept, and joined to what is new in each.

torch's AOTInductor puts the source of its runtime into each wrapper, and a C++ compiler takes seconds for it. It is
compiled while Python traces the program, and kept for the next ones.
"""

import shlex
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from pyro_vae.compiling.private import INSTRUCTIONS, SETTINGS, member
from pyro_vae.compiling.store import checked, keep, name_of, store
from pyro_vae.files import CheckpointError

BUILDING = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
BUILDER, BUILD_OPTIONS = ("torch._inductor.cpp_builder", "CppBuilder"), "CppTorchDeviceOptions"
SOURCE = "codegen", "aoti_runtime", "interface.cpp"  # in the folder of torch._inductor
TEMPLATE = "namespace torch::aot_inductor {{ {}template class AOTInductorModelBase<AOTInductorModel>; }}\n"
HEADER = "#include <torch/csrc/inductor/aoti_runtime/model_container.h>\n" + TEMPLATE.format("extern ")
NAMES = "wrapper", "wrapper.cpp", "wrapper.o"  # of a builder, of its source and its object

_compiling = Lock()
_objects: dict[str, bytes] = {}  # of this process, by their names in the store


def source() -> str | None:
    """Return the source of the runtime as torch writes it into a wrapper; None if this torch has none."""
    with suppress(OSError, TypeError):
        lines = Path(member(SETTINGS[0], "__file__")).parent.joinpath(*SOURCE).read_text().rstrip().split("\n")
        return "\n".join(line if line.strip() else "" for line in lines)
    return None


def compile_ahead(options: dict[str, Any]) -> None:
    """Find the vector instructions that torch's compiler can use, and compile the runtime if it is not kept yet."""
    kinds = [member(BUILDER[0], name) for name in (BUILDER[1], BUILD_OPTIONS)]
    text = source()
    with suppress(Exception), TemporaryDirectory(prefix="pyro_vae") as folder:  # the first graph meets the same error
        with member(*SETTINGS)({**options, **BUILDING}):
            instructions = member(*INSTRUCTIONS)()
            if None in kinds or text is None:
                return
            flags = {"compile_only": True, "min_optimize": True, "aot_mode": True, "device_type": "cpu"}
            chosen = kinds[1](vec_isa=instructions, **flags)
            name, *files = NAMES
            path = Path(folder, files[0])
            command = kinds[0](name=name, sources=str(path), output_dir=folder, BuildOption=chosen).get_command_line()
        runtime(text, _pattern(command, path))


def build_wrapper(build: Callable[[Any], None], builder: Any) -> None:
    """Compile a wrapper by a builder of torch: what is new in it, joined to the runtime; as a whole if that fails."""
    target = Path(builder.get_target_file_path())
    path, text = target.with_suffix(".cpp"), source()
    whole = path.read_text()
    if text is None or text not in whole:
        build(builder)
        return
    try:
        path.write_text(whole.replace(text, HEADER))
        build(builder)
        pattern = _pattern(builder.get_command_line(), path)
        target.with_name("runtime.o").write_bytes(runtime(text, pattern))
        _join(pattern[0], target, target.with_name("runtime.o"))
    except Exception:  # of a compiler, or a torch, that takes them only together; an error of both is raised by it
        path.write_text(whole)
        build(builder)


def runtime(text: str, command: Sequence[str]) -> bytes:
    """Return the object file of the runtime, from the store or compiled now by a command (``_pattern``)."""
    folder, name = store(), name_of(text, *command)
    path = None if folder is None else folder / f"{name}.o"
    with _compiling:  # another thread may be making it
        if name not in _objects and path is not None:
            with suppress(OSError, CheckpointError):
                _objects[name] = checked(path)
        if name not in _objects:
            _objects[name] = _compiled(text, command)
            if path is not None:
                keep(_objects[name], path)
        return _objects[name]


def _compiled(text: str, command: Sequence[str]) -> bytes:
    with TemporaryDirectory(prefix="pyro_vae") as folder:
        files = {name: str(Path(folder, name)) for name in NAMES[1:]}
        Path(files[NAMES[1]]).write_text(text + "\n" + TEMPLATE.format(""))
        _call([files.get(word, word) for word in command])
        return Path(files[NAMES[2]]).read_bytes()


def _pattern(command: str, source: Path) -> list[str]:
    """Return the words of a command that compiles a source, with other names of source and object."""
    files = dict(zip((str(source), str(source.with_suffix(".o"))), NAMES[1:]))
    return [files.get(word, word) for word in shlex.split(command)]


def _join(compiler: str, target: Path, other: Path) -> None:
    """Add an object file to another one."""
    joined = target.with_name("joined.o")
    _call([compiler, "-r", "-nostdlib", "-o", str(joined), str(target), str(other)])
    joined.replace(target)


def _call(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
