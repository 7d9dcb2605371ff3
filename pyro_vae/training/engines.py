"""What takes a gradient step: ``Eager``, ``Compiled`` or ``SVI``, each from a batch of pixels to its loss, in nats.

All three train by the same numbers: same seed, same curve, up to rounding. The state of the optimiser is that of one
torch optimiser, whose ``state_dict()`` is the truth at any time, so that one engine can go on where another stopped.

Where the loss or its gradient is not finite, ``Eager`` and ``Compiled`` leave the step out, schedule aside, and return
a loss that is not finite.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim import Adam, Optimizer
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.constants import Held, Patience, words
from pyro_vae.compiling.export import (
    IN_PLACE,
    NOT_THE_SAME,
    OPTIONS,
    OR_EAGERLY,
    Loss,
    Untraceable,
    missing_compiler,
    own_code,
    precision,
    quiet_torch,
    random_numbers_kept,
    tensors_only,
    traced,
)
from pyro_vae.compiling.outcomes import Outcome, contents_kept, difference, outcome
from pyro_vae.program import observed
from pyro_vae.training import ranks

ENGINES = ("auto", "eager", "compiled", "svi")
WORTH_COMPILING = 2000  # steps from which compiling, 10 to 20 seconds, is earned back by small networks on two cores


class EngineWarning(UserWarning):
    """Steps are not taken as they were to be, or may not have been; the message says why and names the cure."""


class Eager:
    """The gradient of ``estimator(model, guide)`` by autograd, and a step of the torch optimiser.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> program.observe = lambda pixels: pixels
    >>> step = Eager(program, Trace_ELBO(), Adam(program.parameters()))
    >>> step(program.simulate(5)).shape
    torch.Size([])
    """

    name = "eager"

    def __init__(
        self,
        program: nn.Module,
        estimator: ELBO,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
    ):
        self.loss = Loss(estimator, program.model, program.guide, partial(observed, program))
        self.optimizer, self.scheduler, self.clip = optimizer, scheduler, clip

    def __call__(self, pixels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(pixels)
        loss.backward()
        return self.update(loss)

    def end_epoch(self) -> None:
        """Nothing is compiled, and nothing to be compared."""

    def update(self, loss: Tensor) -> Tensor:
        """Steps the optimiser by the gradients at hand, and the schedule; the loss, or NaN where a gradient is."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = loss.detach().clone()
        ranks.all_reduce([loss, *(parameter.grad for parameter in parameters)])
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        loss = loss + 0 * norm
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        if loss.is_cuda and self.optimizer.defaults.get("fused"):
            self.optimizer.found_inf = (~loss.isfinite()).float()  # as GradScaler does: the host need not wait
        elif not loss.isfinite():
            self.optimizer.zero_grad()  # without gradients nothing moves; schedules and hooks are told of the step
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss


class SVI:
    """``pyro.infer.SVI.step`` with Pyro's own optimiser, which keeps one torch optimiser a parameter: the reference.

    Those optimisers write their state into the one given. Raises ValueError where Pyro sees no param site of a
    parameter, which ``SVI`` would leave as it is without a word, and for gradient clipping, which it has not. It is the
    engine of estimators without a ``differentiable_loss``; the loss of one that has several is their sum.
    """

    name = "svi"

    def __init__(
        self,
        program: nn.Module,
        estimator: ELBO,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
    ):
        others = 'write engine="eager" or "compiled"'
        if not hasattr(estimator, "differentiable_loss"):
            others = f"{type(estimator).__name__} trains by no other engine, so leave that out"
        if ranks.world_size() > 1:
            raise ValueError(f'engine: "svi" trains in one process, and here are {ranks.world_size()}; {others}')
        if clip is not None:
            raise ValueError(f'clip: engine="svi" does not clip the norm of all gradients; {others}')
        self.program, self.scheduler, self.optimizer = program, scheduler, optimizer
        self.each = pyro.optim.PyroOptim(type(optimizer), {})
        self.svi = pyro.infer.SVI(program.model, program.guide, self.each, estimator)
        self.checked = False

    def __call__(self, pixels: Tensor) -> Tensor:
        x = observed(self.program, pixels)
        if not self.checked:
            self._check_sites(x)
            self.checked = True
        self._share_state()
        loss = self.svi.step(x)
        self.optimizer.zero_grad()
        self.optimizer.step()  # moves nothing without gradients; it tells schedules and hooks of the step
        if self.scheduler is not None:
            self.scheduler.step()
        return torch.as_tensor(loss).sum()

    def end_epoch(self) -> None:
        """Nothing is compiled, and nothing to be compared."""

    def _share_state(self) -> None:
        """Has Pyro's optimiser of each parameter work with the settings and in the state of the one given."""
        for group in self.optimizer.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            for parameter in group["params"]:
                if parameter not in self.each.optim_objs:
                    self.each.optim_objs[parameter] = type(self.optimizer)([parameter], lr=group["lr"])
                    self.each.grad_clip[parameter] = None
                self.each.optim_objs[parameter].state[parameter] = self.optimizer.state[parameter]
                self.each.optim_objs[parameter].param_groups[0].update(settings)

    def _check_sites(self, x: Tensor) -> None:
        with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
            functions = self.program.guide, self.program.model
            traces = [poutine.trace(function, param_only=True).get_trace(x) for function in functions]
        sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "param"]
        seen = {id(site["value"].unconstrained()) for site in sites}
        names = [name for name, p in self.program.named_parameters() if p.requires_grad and id(p) not in seen]
        if names:
            raise ValueError(
                f"engine='svi': Pyro sees no param site of {names[:3]} ({len(names)} in all) and would not train them; "
                "call pyro_vae.vae.parameter_sites(self) in model and guide, or take another engine"
            )


class Compiled:
    """x from the pixels, the loss and its gradient as one compiled graph; then the optimiser's step.

    That of plain Adam is torch's fused kernel, called without what ``Adam.step`` does in Python; in the graph itself it
    would be no faster and take half as long again to compile. The first step is eager, as it is torch's own optimiser
    that makes its state; so are batches of another size than the first, as the last of an epoch may be.

    A trace turns numbers and flags of the program into constants. Where one of them changed since, the step is eager
    and the next one traced anew; where they change from step to step, training goes on eagerly, with a warning that
    names them. At the first step of a trace, and at the end of each epoch, loss, gradients and buffers are compared
    with the eager ones on the same random numbers; where they differ by more than rounding, it is traced anew, once.

    Raises ``Untraceable`` at the second step where the program cannot be traced; if not ``strict``, a warning says why
    and it goes on eagerly. ``shape`` is that of the batches of a run that is resumed, whose first step is not eager.
    The other arguments are those of ``Eager``.
    """

    def __init__(
        self,
        program: nn.Module,
        estimator: ELBO,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        strict: bool = True,
        shape: torch.Size | None = None,
    ):
        self.eager = Eager(program, estimator, optimizer, scheduler, clip)
        self.program, self.strict, self.name, self.shape = program, strict, "compiled", shape
        self.held: Held | None = None  # from the first trace on
        self.patience, self.doubted = Patience(), False
        self.run: Gradients | None = None
        self.batch: Tensor | None = None  # the last one of this epoch

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.shape is None:
            self.shape = pixels.shape
            return self.eager(pixels)
        if self.name == "eager" or pixels.shape != self.shape:
            return self.eager(pixels)
        if _is_plain_adam(self.eager.optimizer) and not self.eager.optimizer.state:
            return self.eager(pixels)  # which makes that state, and did not yet: the steps so far were left out
        if not self._is_as_traced() or not (self.run or self._trace(pixels)):
            return self.eager(pixels)
        self.batch = pixels
        return self._step(*self.run(pixels))

    def end_epoch(self) -> None:
        """Compares a compiled step with the eager one, and leaves no trace of either."""
        batch, self.batch = self.batch, None
        if self.run is None or batch is None or not self._is_as_traced():
            return
        said = self._difference(self.run, batch)
        if said and self.doubted:
            self._go_on_eagerly(NOT_THE_SAME.format(said))
        elif said:
            self.run, self.doubted = None, True
            warnings.warn(
                f"{NOT_THE_SAME.format(said)}. It is traced anew; steps of this epoch may have been taken by "
                f"an old value. To be sure, {IN_PLACE}",
                EngineWarning,
                stacklevel=2,
            )

    def _is_as_traced(self) -> bool:
        """Whether numbers and flags of the program are as they were at the last step; else the trace is given up."""
        changes = self.held.changes() if self.held else {}
        if not changes:
            self.patience.used()
            return True
        self.run = None
        if self.patience.ends():
            self._go_on_eagerly(
                f"{words(changes)}: it changes from step to step, and would be traced anew each time; {IN_PLACE}"
            )
        return False

    def _trace(self, pixels: Tensor) -> bool:
        """Makes ``run``, and whether it could."""
        first, self.held = self.held is None, self.held or Held(self.eager.loss.roots)
        try:
            self.run = self._compiled(pixels)
        except (Untraceable, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if self.strict and first and isinstance(error, Untraceable):
                raise
            if self.strict and first:
                raise Untraceable(f'torch cannot compile this step ({reason}); train by engine="eager"') from error
            self._go_on_eagerly(reason)
        return self.run is not None

    def _compiled(self, pixels: Tensor) -> "Gradients | None":
        """None where the optimiser has no state yet of a parameter that it trains."""
        loss, optimizer = self.eager.loss, self.eager.optimizer
        graph = traced(loss, (pixels,), self.held)
        with random_numbers_kept((pixels,)), contents_kept([*loss.parameters(), *loss.buffers()]), tensors_only():
            outcome = self._outcome(pixels)
        run = Gradients(graph, self._parameters(), dict(self.program.named_buffers()), outcome)
        if _is_plain_adam(optimizer) and not all(optimizer.state.get(parameter) for parameter in run.trained):
            return None
        optimizer.zero_grad()
        with quiet_torch():
            said = self._difference(run, pixels)
        if said:
            raise Untraceable(f"{NOT_THE_SAME.format(said)}; {OR_EAGERLY}")
        return run

    def _difference(self, run: "Gradients", pixels: Tensor) -> str | None:
        hooked = [name for name, p in self._parameters().items() if p._backward_hooks or p._post_accumulate_grad_hooks]
        if hooked:
            return f"the gradient of {hooked[0]} has a hook, which would not be called"
        with tensors_only():
            return difference(
                self.eager.loss,
                run.precision,
                pixels.numel(),
                lambda: self._outcome(pixels),
                lambda: run.outcome(pixels),
            )

    def _outcome(self, pixels: Tensor) -> Outcome:
        return outcome(self.eager.loss, (pixels,), self._parameters(), dict(self.program.named_buffers()))

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Those of the program that the optimiser trains."""
        known = {id(parameter) for group in self.eager.optimizer.param_groups for parameter in group["params"]}
        return {name: p for name, p in self.program.named_parameters() if p.requires_grad and id(p) in known}

    def _step(self, loss: Tensor, gradients: list[Tensor], norm: Tensor) -> Tensor:
        """The optimiser's step, and the schedule's; the loss, or NaN where a gradient is."""
        optimizer, clip = self.eager.optimizer, self.eager.clip
        if not _is_plain_adam(optimizer):
            for parameter, gradient in zip(self.run.trained, gradients):
                parameter.grad = gradient
            return self.eager.update(loss)
        if ranks.world_size() > 1:
            ranks.all_reduce([loss, *gradients])
            norm = nn.utils.get_total_norm(gradients)
        loss = loss + 0 * norm
        if clip is not None:
            gradients = _clipped(gradients, norm, clip)
        (group,) = optimizer.param_groups
        states = [optimizer.state[parameter] for parameter in self.run.trained]
        means, squares, counts = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        adam(
            self.run.values,
            gradients,
            means,
            squares,
            [],
            counts,
            fused=True,
            lr=group["lr"],
            eps=group["eps"],
            found_inf=(~loss.isfinite()).float(),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )  # which leaves out a step that is not finite
        if self.eager.scheduler is not None:
            self.eager.scheduler.step()
        return loss

    def _go_on_eagerly(self, reason: str) -> None:
        self.name, self.run, self.held = "eager", None, None
        warnings.warn(f"training eagerly: {reason}", EngineWarning, stacklevel=3)


class Gradients:
    """Loss, gradients and their norm from pixels, as one compiled graph on the memory of the parameters.

    Trained are the parameters whose gradient arrives in the eager ``outcome``; the buffers that change there are
    changed here too.
    """

    def __init__(
        self,
        graph: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        outcome: Outcome,
    ):
        self.names, self.moving = list(outcome.gradients), list(outcome.buffers)
        self.trained = [parameters[name] for name in self.names]
        self.values = [parameter.detach() for parameter in self.trained]
        self.buffers = [buffers[name] for name in self.moving]
        self.precision = precision(graph)
        places = {id(tensor): name for name, tensor in (*graph.named_parameters(), *graph.named_buffers())}
        inputs, others = ([places[id(tensor)] for tensor in group] for group in (self.trained, self.buffers))
        rest = {name: p.detach() for name, p in graph.named_parameters() if name not in inputs}

        def value(values: Sequence[Tensor], pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
            moved = [buffer.clone() for buffer in self.buffers]  # torch.func lets no other memory be changed in place
            return functional_call(graph, rest | dict(zip([*inputs, *others], [*values, *moved])), (pixels,)), moved

        def step(values: Sequence[Tensor], pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
            gradients, (loss, moved) = grad_and_value(value, has_aux=True)(values, pixels)
            norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
            return loss, gradients, moved, norm

        self._compiled = _compiled(step, self.values[0].device)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        loss, gradients, moved, norm = self._compiled(self.values, pixels)
        for buffer, value in zip(self.buffers, moved):
            buffer.copy_(value)
        # Fused optimisers read memory in its order, which in a gradient may be another one than in the parameter.
        alike = (g.stride() == p.stride() for g, p in zip(gradients, self.values))
        ordered = [g if same else torch.empty_like(p).copy_(g) for g, p, same in zip(gradients, self.values, alike)]
        return loss, ordered, norm

    def outcome(self, pixels: Tensor) -> Outcome:
        """What an eager run would come to."""
        loss, gradients, moved, _ = self._compiled(self.values, pixels)
        gradients, moved = ([tensor.clone() for tensor in group] for group in (gradients, moved))
        return Outcome(loss.clone(), dict(zip(self.names, gradients)), dict(zip(self.moving, moved)))


def engine(
    name: str,
    program: nn.Module,
    estimator: ELBO,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    steps: int = 0,
    shape: torch.Size | None = None,
) -> Eager | Compiled | SVI:
    """The engine of that name; "auto" compiles ``WORTH_COMPILING`` steps or more on a CPU, where there is a compiler.

    Which it took is its ``name``; ``shape`` is for ``Compiled``. Raises ValueError for a name not among ``ENGINES``.
    Where nothing can be compiled on this machine, an ``EngineWarning`` says so and it is "eager".

    >>> engine("fast", nn.Identity(), None, None)
    Traceback (most recent call last):
        ...
    ValueError: engine: wanted one of auto, eager, compiled, svi, got 'fast'
    """
    if name not in ENGINES:
        raise ValueError(f"engine: wanted one of {', '.join(ENGINES)}, got {name!r}")
    arguments = (program, estimator, optimizer, scheduler, clip)
    if name == "svi":
        return SVI(*arguments)
    on_cpu = next(program.parameters()).device.type == "cpu"
    missing = missing_compiler()
    wanted = name == "compiled" or (name == "auto" and steps >= WORTH_COMPILING and on_cpu)
    if wanted and missing:
        warnings.warn(f"training eagerly: {missing}", EngineWarning, stacklevel=2)
    if missing or not wanted:
        return Eager(*arguments)
    return Compiled(*arguments, strict=name == "compiled", shape=shape)


@contextmanager
def fast_matmul(device: torch.device | str) -> Iterator[None]:
    """A block in which float32 products on a CPU take the faster kernel, where it is measured to be as accurate.

    That is what ``torch.set_float32_matmul_precision("medium")`` selects: on an AMD CPU oneDNN in place of MKL, more
    than twice as fast, with a relative error of 4e-7 where the other has 3e-7. On CPUs where it computes in bfloat16
    (an error of 4e-3) the block changes nothing; nor does it on other devices, or where the user has chosen already.

    >>> with fast_matmul("cpu"):
    ...     chosen = torch.get_float32_matmul_precision()
    >>> chosen in ("medium", "highest"), torch.get_float32_matmul_precision()
    (True, 'highest')
    """
    before = torch.get_float32_matmul_precision()
    try:
        if torch.device(device).type == "cpu" and before == "highest":
            torch.set_float32_matmul_precision("medium")
            if _matmul_error() > 1e-6:
                torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def keep_freed_memory() -> bool:
    """Has the C library keep up to 1 GiB of freed memory, for good; whether it could (glibc alone has the means).

    By default it hands the tensors of a step back to the kernel, and the next step pays for every page anew: a quarter
    of the time of a training on a CPU.

    >>> keep_freed_memory() in (True, False)
    True
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 1 << 25) and mallopt(trim_threshold, 1 << 30))


def warn_if_emulated(precision: torch.dtype | None, device: torch.device | str) -> None:
    """Says in a line on standard error that bfloat16 will be slow, where a CPU has no instructions for it."""
    if precision is not torch.bfloat16 or torch.device(device).type != "cpu":
        return
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if able.get("architecture") == "x86_64" and not (able.get("avx512_bf16") or able.get("amx_bf16")):
        _notice("bfloat16 will be slow: this CPU has no instructions for it and emulates them; float32 is faster here")


def _matmul_error() -> float:
    """Relative error of a float32 product, in the Frobenius norm."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 784, generator=generator), torch.randn(784, 128, generator=generator)
    exact = a.double() @ b.double()
    return ((a @ b - exact).norm() / exact.norm()).item()


def _compiled(step: Callable, device: torch.device) -> Callable:
    """The function compiled for the arguments of its first call, without the checks of later ones, which take longer
    than a small step: engines call it with the same tensors and one shape of pixels. On a GPU it is one CUDA graph,
    whose results hold until the next call, and whose random numbers move on with each replay.

    torch keeps its graphs by code object, so that without checks each needs one of its own.
    """
    options: dict[str, Any] = {**OPTIONS, "guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    return torch.compile(own_code(step), fullgraph=True, dynamic=False, options=options)


def _is_plain_adam(optimizer: Optimizer) -> bool:
    """Whether a step of it is that of ``_adam_step``, and nothing else happens at a step."""
    plain, group = {"weight_decay": 0, "amsgrad": False, "maximize": False}, optimizer.param_groups[0]
    return (
        type(optimizer) is Adam
        and len(optimizer.param_groups) == 1
        and all(group[name] == value for name, value in plain.items())
        and bool(group["fused"] or group["params"][0].device.type == "cpu")  # where t lies beside the parameters
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
    )


def _clipped(gradients: Sequence[Tensor], norm: Tensor, limit: float) -> list[Tensor]:
    """As ``torch.nn.utils.clip_grads_with_norm_``: the norm of all gradients together is at most the limit."""
    share = (limit / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * share for gradient in gradients]


def _notice(line: str) -> None:
    print(line, file=sys.stderr)
