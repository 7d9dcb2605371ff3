"""A GPU that is not there: tensors that say ``cuda:0``, computed on the CPU, under the rules of CUDA.

Operations on tensors of two devices raise RuntimeError as on a GPU, and so do ``numpy()`` and generators of another
device. The GPU has a random number generator of its own. Each read of a value by the host, for which it would wait for
the GPU, is noted, and each copy of values to the GPU. What happens within one operation of torch is not seen, nor in a
graph that torch compiles.
"""

import sys
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo.polyfills.loader  # which would take the replaced functions for those of torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
RANDOM = {
    "bernoulli", "dropout", "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like",
    "randn", "randn_like", "randperm", "_standard_gamma", "_sample_dirichlet", "binomial", "_dirichlet_grad",
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_",
}  # fmt: skip
READS = {
    "item", "tolist", "nonzero", "masked_select", "unique", "equal", "allclose", "is_nonzero", "bincount", "isin",
    "__bool__", "__float__", "__int__", "__index__", "__contains__", "__repr__", "argwhere", "repeat_interleave",
}  # fmt: skip
ANY_DEVICE = {"copy_", "__setitem__", "__getitem__", "to", "cpu", "cuda", "type_as", "__deepcopy__", "data"}
ABOUT = {
    "size", "dim", "stride", "numel", "__len__", "is_floating_point", "is_complex", "element_size", "__hash__",
    "_has_compatible_shallow_copy_type",
}  # fmt: skip


class Generator(torch.Generator):
    """A generator of numbers on a device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self):
        return self.place


class SimulatedGPU(TorchFunctionMode):
    """Mode of torch in which there is one GPU; ``reads`` holds a line for each value that the host read."""

    def __init__(self):
        super().__init__()
        self.here, self.reads, self.uploads = WeakTensorKeyDictionary(), [], []
        self.state = torch.Generator().manual_seed(7).get_state()

    def is_here(self, value):
        return isinstance(value, Tensor) and value in self.here

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = _name(function)
        if name in ("device", "is_cuda", "is_cpu", "get_device"):
            return self._place(name, args, function, kwargs)
        on_gpu = [leaf for leaf in tree_leaves((args, kwargs)) if self.is_here(leaf)]
        if name == "_parse_to":
            found = function(*args, **kwargs)
            return (GPU, *found[1:]) if on_gpu else found
        if name == "grad":
            found = function(*args, **kwargs)
            return self._marked(found) if on_gpu and not _sets(function) else found
        if (not on_gpu and not _asks_for_gpu((args, kwargs))) or name in ABOUT:
            return self._computed(function, name, args, kwargs, onto=False)
        self._check(name, args, kwargs, on_gpu)
        wanted = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        wanted += [torch.device(leaf) for leaf in tree_leaves((args, kwargs)) if _is_device_word(leaf)]
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        onto = name != "cpu" and (not wanted or torch.device(wanted[0]).type == "cuda")
        if name == "to" and not wanted and len(args) > 1 and isinstance(args[1], Tensor):
            onto = self.is_here(args[1])
        if name == "type_as":
            onto = self.is_here(args[1])
        if name in READS or (on_gpu and not onto) or self._indexes_by_mask(name, args):
            self._note(name)
        if name in ("pin_memory", "is_pinned") and on_gpu:
            raise RuntimeError("cannot pin memory of a tensor on cuda:0: only dense CPU tensors can be pinned")
        if onto and not on_gpu and name in ("to", "cuda", "tensor", "as_tensor", "scalar_tensor"):
            self._note(name, self.uploads)
        plain = tree_map(_on_cpu, (args, kwargs))
        return self._computed(function, name, *plain, onto=onto)

    def _place(self, name, args, function, kwargs):
        here = self.is_here(args[0])
        return {"device": GPU if here else function(*args, **kwargs) if name == "device" else None,
                "is_cuda": here, "is_cpu": not here, "get_device": 0 if here else -1}[name]  # fmt: skip

    def _computed(self, function, name, args, kwargs, onto):
        if name == "data" and len(args) > 1:
            found = function(*args, **kwargs)
            self._mark(args[0], self.is_here(args[1]))
            return found
        if name in ("backward",) or not onto:
            return self._copied(function(*args, **kwargs), args, name)
        own = name in RANDOM and kwargs.get("generator") is None
        with self.numbers() if own else nullcontext():
            found = function(*args, **kwargs)
        moved = name in ("to", "cuda", "as_tensor", "type_as") and isinstance(found, Tensor) and found not in self.here
        return self._marked(found.clone() if moved and found is args[0] else found)

    def _copied(self, found, args, name):
        """Return a new tensor where a move to the CPU would give the very tensor of the GPU."""
        return found.clone() if isinstance(found, Tensor) and name in ("cpu", "to") and found in self.here else found

    @contextmanager
    def numbers(self):
        """Context manager in which torch's generator is that of the GPU."""
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            yield
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(before)

    def _marked(self, found):
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._mark(leaf, True)
        return found

    def _mark(self, tensor, here):
        if here:
            self.here[tensor] = True
        elif tensor in self.here:
            del self.here[tensor]

    def _check(self, name, args, kwargs, on_gpu):
        generator = kwargs.get("generator") or next((a for a in args if isinstance(a, torch.Generator)), None)
        if generator is not None and getattr(generator, "place", CPU).type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        others = [tensor for tensor in tensors if tensor not in self.here and tensor.dim()]
        if name == "__getitem__" and not self.is_here(args[0]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if on_gpu and others and name not in ANY_DEVICE and name != "grad":
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {name}")

    def _indexes_by_mask(self, name, args):
        leaves = tree_leaves(args[1:2]) if name in ("__getitem__", "__setitem__") else []
        scalars = name == "__setitem__" and not isinstance(args[2], Tensor)  # which is masked_fill, without a wait
        return (
            any(isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in leaves) and not scalars
        )

    def _note(self, name, where=None):
        """Note the place in this package or Pyro from which the host reads, or writes."""
        notes = self.reads if where is None else where
        frame = sys._getframe(2)
        while frame and not ({"pyro_vae", "pyro"} & set(Path(frame.f_code.co_filename).parts[:-1])):
            if "/torch/optim/" in frame.f_code.co_filename:
                return  # its kernels, which are the CPU's here, move the flag of non-finite steps to their device
            frame = frame.f_back
        notes.append(f"{name} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else name)

    def read_state(self, device="cuda"):
        return self.state.clone()

    def write_state(self, state, device="cuda"):
        self.state = state.clone()

    def seed(self, seed):
        self.state = torch.Generator().manual_seed(seed).get_state()


def _name(function):
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        owner = getattr(function, "__self__", None)
        return getattr(owner, "__name__", name)
    return name


def _sets(function):
    return getattr(function, "__name__", "") in ("__set__", "__delete__")


def _is_device_word(leaf):
    return isinstance(leaf, str) and leaf.partition(":")[0] in ("cuda", "cpu")


def _asks_for_gpu(value):
    return any(
        (isinstance(leaf, torch.device) and leaf.type == "cuda") or (_is_device_word(leaf) and leaf.startswith("cuda"))
        for leaf in tree_leaves(value)
    )


def _on_cpu(leaf):
    is_place = isinstance(leaf, torch.device) and leaf.type == "cuda"
    return CPU if is_place or (_is_device_word(leaf) and leaf.startswith("cuda")) else leaf


@contextmanager
def simulated_gpu():
    """Context manager in which torch sees a GPU, which it yields."""
    gpu = SimulatedGPU()
    fork = torch.random.fork_rng

    @contextmanager
    def fork_rng(devices=(), *args, **kwargs):
        state = gpu.state
        with fork([], *args, **kwargs):
            yield
        if list(devices):
            gpu.state = state

    def autocast(device_type, *args, **kwargs):
        return AUTOCAST("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def enabled(device_type=None):
        return ENABLED("cpu" if device_type in ("cuda", None) else device_type)

    def subclassed(kind, tensor, *args, **kwargs):  # as nn.Parameter makes itself
        made = SUBCLASSED(kind, tensor, *args, **kwargs)
        gpu._mark(made, gpu.is_here(tensor))
        return made

    replaced = {
        "Generator": Generator, "random.fork_rng": fork_rng, "cuda.is_available": lambda: True,
        "cuda.is_initialized": lambda: True, "cuda.device_count": lambda: 1, "cuda.get_rng_state": gpu.read_state,
        "cuda.set_rng_state": gpu.write_state, "cuda.manual_seed": gpu.seed, "cuda.manual_seed_all": gpu.seed,
        "cuda.device": lambda device: nullcontext(), "cuda.synchronize": lambda *args: None, "autocast": autocast,
        "is_autocast_enabled": enabled, "Tensor.pin_memory": lambda tensor: tensor.clone(),
        "Tensor._make_subclass": staticmethod(subclassed),
    }  # fmt: skip
    health = {f"{name}_graph_capture_health_check": lambda optimizer: None for name in ("_accelerator", "_cuda")}
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(f"torch.{name}", value))
        for room in ("observation", "comparison.moments"):
            stack.enter_context(mock.patch(f"pyro_vae.{room}.Generator", Generator))
        stack.enter_context(mock.patch.multiple(torch.optim.Optimizer, create=True, **health))
        stack.enter_context(gpu)
        yield gpu


SUBCLASSED = Tensor._make_subclass
AUTOCAST, ENABLED = torch.autocast, torch.is_autocast_enabled
