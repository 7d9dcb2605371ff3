"""Decoder, encoder or both as a file that runs without this package: ONNX, or torch's own format."""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae import __version__
from pyro_vae.analysis import point
from pyro_vae.compiling.compiler import quiet_torch
from pyro_vae.conditional import Conditional
from pyro_vae.files import expanded, write_whole
from pyro_vae.missing import innermost
from pyro_vae.optional import optional
from pyro_vae.program import dtype_of, held_by
from pyro_vae.random import seeded
from pyro_vae.words import EXPORTABLE

NEAR = 1e-5  # how far a value may be from torch's, times the greater of 1 and its size
ROWS, OTHER_ROWS = 3, 7  # of the example that is exported, and of the batch by which it is checked
Outputs = dict[str, Tensor]


def export(vae: Any, path: Path | str, part: str = "decoder") -> None:
    """Write a part of a trained program to a file that needs neither this package nor Pyro.

    The inputs have any number of rows. "decoder": z (N, D) to the mean of p(x | z). "encoder": x (N, *event) to the
    mean of q(z | x). "reconstruct": x to the mean of p(x | z) at the mean of q. A ``Conditional`` has the classes as a
    second input, "labels", int64 (N,). x is what ``vae.observe`` makes of raw rows, such as grey levels / 255.

    The first output is called "mean"; in a table's columns of levels it is the most probable level. Outputs after it
    are the other parameters of the distribution, by Pyro's names: "logits" of a Bernoulli, "scale" of a normal.

    By the ending of ``path`` the format is ONNX, for onnxruntime (".onnx"), or that of ``torch.export.save`` (".pt2").
    Before it is written, the file is loaded and run on two batches of other sizes than it was made with: each output
    must be within 1e-5 of torch's.

    Args:
        vae: a ``VAE``, a ``Conditional``, or another module with ``prior()``, ``likelihood(z)`` and ``posterior(x)``.
        path: of the file, which is replaced.
        part: "decoder", "encoder" or "reconstruct".

    Raises ValueError for a part without a mean in closed form, such as a guide that is a flow, for one that cannot be
    exported, and where values differ; ImportError without the packages of ``pip install 'pyro_vae[export]'``.

    >>> import tempfile
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(LinearGaussian(torch.ones(3, 2)), f"{folder}/decoder.pt2")
    ...     decoder = torch.export.load(f"{folder}/decoder.pt2").module()
    >>> [value.shape for value in decoder(torch.zeros(5, 2))]
    [torch.Size([5, 3]), torch.Size([5, 3])]
    """
    path = expanded(path)
    writers = {".onnx": _as_onnx, ".pt2": _as_pt2}
    if path.suffix not in writers:
        raise ValueError(f"path: wanted a name that ends in {' or '.join(writers)}, got {path.name!r}")
    if path.suffix == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            optional(name, "files for onnxruntime")
    module = _module(vae, part)
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False), quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = list(module.outputs(*module.example(ROWS)))
        content, run = writers[path.suffix](module, names)
        for rows in (1, OTHER_ROWS):
            inputs = module.example(rows)
            _check(names, module(*inputs), run(inputs), path.suffix)
    write_whole(path, content)


class _Exported(nn.Module):
    """A function of tensors with a batch dimension of any size, and the parameters of the program that it is of."""

    def __init__(self, vae: Any, part: str):
        super().__init__()
        self.vae = vae
        self.function = getattr(self, part)
        first = "z" if part == "decoder" else "x"
        self.inputs = (first, "labels") if isinstance(vae, Conditional) else (first,)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(*inputs).values())

    def outputs(self, *inputs: Tensor) -> Outputs:
        return self.function(*inputs)

    def decoder(self, z: Tensor, labels: Tensor | None = None) -> Outputs:
        given = z if labels is None else torch.cat([z, self.vae.one_hot(labels, z)], -1)
        p = self.vae.likelihood(given)
        return _with_parameters(point(p), p)

    def encoder(self, x: Tensor, labels: Tensor | None = None) -> Outputs:
        q = self.vae.posterior(x) if labels is None else self.vae.q(x, labels)
        return _with_parameters(q.mean, q)

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Outputs:
        return {"mean": self.decoder(self.encoder(x, labels)["mean"], labels)["mean"]}

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Return inputs of this many rows; x is one that the likelihood can score."""
        z = torch.randn(rows, *self.vae.prior().event_shape, dtype=dtype_of(self.vae))
        labels = (torch.arange(rows) % self.vae.classes,) if isinstance(self.vae, Conditional) else ()
        first = z if self.inputs[0] == "z" else self.decoder(z, *labels)["mean"]
        return first, *labels


def _module(vae: Any, part: str) -> _Exported:
    """Return the function to export, of a copy of the program on the CPU in evaluation mode, and try it."""
    if part not in EXPORTABLE:
        raise ValueError(f"part: wanted one of {', '.join(EXPORTABLE)}, got {part!r}")
    if not all(hasattr(vae, name) for name in ("prior", "likelihood", "posterior")):
        inner = held_by(vae)
        cure = f"; export what it holds, .{inner}" if inner else ""
        if getattr(vae, "mask_as_input", False) and part != "decoder":
            cure = f", whose encoder takes the mask beside x and is not exported; export the decoder of .{inner}"
        raise ValueError(f"vae: wanted a prior, a likelihood and a posterior, got a {type(vae).__name__}{cure}")
    module = _Exported(copy.deepcopy(vae).cpu().eval(), part)
    try:
        with torch.no_grad(), seeded(0):
            module(*module.example(ROWS))
    except NotImplementedError as error:
        slot = "likelihood" if part == "decoder" else "guide"
        raise ValueError(
            f"part {part!r}: the {slot} has no mean in closed form, as a flow has none; vae.encode averages draws. "
            "Export the decoder, or train a guide such as guides.FullRank"
        ) from error
    return module


def _with_parameters(mean: Tensor, p: Distribution) -> Outputs:
    """Return the mean, and the other parameters that a distribution of independent elements was made of."""
    base = innermost(p)
    names = [name for name in base.arg_constraints if name in vars(base)] or list(base.arg_constraints)
    held = {name: getattr(base, name) for name in names}
    return {"mean": mean, **{name: value for name, value in held.items() if value is not mean}}


def _exported(module: _Exported) -> torch.export.ExportedProgram:
    example, batch = module.example(ROWS), torch.export.Dim("batch")
    shapes = {"inputs": tuple({0: batch} for _ in example)}
    try:
        exported = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of many kinds
        raise ValueError(
            f"torch.export cannot follow this part for any number of rows ({_said(error)}); where its code has len(x), "
            "write x.shape[0], and where it looks at values of x, compute with them"
        ) from error
    exported.graph.eliminate_dead_code()  # such as factors of a covariance that only its density needs
    exported.graph_module.recompile()
    return exported


def _as_onnx(module: _Exported, names: list[str]) -> tuple[bytes, Callable]:
    """Return the bytes of an ONNX file, and a function that runs them."""
    exported, inputs = _exported(module), list(module.inputs)
    try:
        shapes = {"inputs": tuple({0: "batch"} for _ in inputs)}  # torch calls the free axis s21, or another number
        program: Any = torch.onnx.export(
            exported, dynamo=True, verbose=False, input_names=inputs, output_names=names, dynamic_shapes=shapes
        )
        program.model.metadata_props.update(_metadata(module))
        content = program.model_proto.SerializeToString()
        session = optional("onnxruntime", "files for onnxruntime").InferenceSession(content)
    except Exception as error:  # of many kinds
        double = ", or export vae.float()" if dtype_of(module) == torch.float64 else ""
        raise ValueError(
            f"onnxruntime has no form for this part ({_said(error)}); write a file that ends in .pt2{double}"
        ) from error

    def run(inputs: tuple[Tensor, ...]) -> list[Any]:
        return session.run(None, {name: value.numpy() for name, value in zip(module.inputs, inputs)})

    return content, run


def _as_pt2(module: _Exported, names: list[str]) -> tuple[bytes, Callable]:
    """Return the bytes of a file of ``torch.export.save``, and a function that runs them."""
    file = io.BytesIO()
    torch.export.save(_exported(module), file, extra_files=_metadata(module) | {"outputs": ", ".join(names)})
    file.seek(0)
    loaded = torch.export.load(file).module()
    return file.getvalue(), lambda inputs: [value.numpy() for value in loaded(*inputs)]


def _said(error: BaseException) -> str:
    """Return what an error says that other errors have come from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _metadata(module: _Exported) -> dict[str, str]:
    return {"pyro_vae": __version__, "torch": torch.__version__, "part": module.function.__name__}


def _check(names: list[str], wanted: tuple[Tensor, ...], got: list[np.ndarray], kind: str) -> None:
    """Raise ValueError unless each output has the values that torch gives."""
    for name, one, other in zip(names, wanted, got, strict=True):
        one = one.numpy()
        far = float((np.abs(one - other) / np.maximum(1, np.abs(one))).max()) if one.shape == other.shape else np.inf
        if not far <= NEAR:
            raise ValueError(
                f"{kind}: the output {name!r} of the file is {far:.2g} away from torch's, more than {NEAR:g}, for "
                f"{len(one)} rows; nothing was written"
            )
