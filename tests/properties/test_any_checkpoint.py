"""Checkpoints of any state: what is read has the bits of what was written, and a training goes on from it alike."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.optim import lr_scheduler

from pyro_vae.training.checkpoint import Checkpoints, decode, encode
from pyro_vae.training.state import TrainingState

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


@st.composite
def tensors(draw):
    """A tensor of any bits, NaN of any payload among them, of any shape, some of them views of larger ones."""
    shape, dtype = draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.sampled_from(DTYPES))
    size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == torch.bool:
        content = bytearray(byte & 1 for byte in content)
    flat = torch.frombuffer(content, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.clone().reshape(shape)
    how = draw(st.sampled_from(["as it is", "transposed", "a view", "expanded"]))
    if how == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1)
    if how == "a view" and tensor.dim():
        return torch.cat([tensor, tensor])[len(tensor) :]
    return tensor.expand(2, *shape) if how == "expanded" else tensor


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | tensors()
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=12,
)


def bits(tree):
    """A tree as something that is equal only to a tree of the same types and bits."""
    if isinstance(tree, torch.Tensor):
        raw = tree.detach().contiguous().flatten().view(torch.uint8) if tree.numel() else torch.empty(0)
        return str(tree.dtype), tuple(tree.shape), bytes(raw.tolist()) if tree.numel() else b""
    if isinstance(tree, dict):
        return [(key, bits(value)) for key, value in tree.items()]
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return type(tree).__name__, tree.hex() if isinstance(tree, float) else tree


@settings(max_examples=6 * settings.default.max_examples)
@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_any_tree_is_read_as_it_was_written(tree):
    assert bits(decode(encode(tree), "it")) == bits(tree)


@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_any_tree_comes_back_from_its_file_and_leaves_the_one_before_it(tmp_path, tree):
    Checkpoints(tmp_path, overwrite=True).remove()
    there = Checkpoints(tmp_path)
    there.save({"step": 1})
    there.save(tree)
    newest, previous = there.paths
    assert bits(Checkpoints(tmp_path, resume=True).load()) == bits(tree)
    newest.unlink()
    assert Checkpoints(tmp_path, resume=True).load() == {"step": 1} and previous.exists()


OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "two groups": lambda parameters: torch.optim.Adam(
        [{"params": [p], "lr": 0.01 * n} for n, p in enumerate(parameters, 1)]
    ),
}
SCHEDULES = {
    "none": lambda optimizer: None,
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 20, cycle_momentum=False),
    "plateau": lr_scheduler.ReduceLROnPlateau,
}


class Program(nn.Module):
    """Parameters of several kinds: frozen ones, a buffer in the state dict and one outside of it."""

    def __init__(self, dtype, frozen):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2).to(dtype), nn.BatchNorm1d(2).to(dtype)
        self.linear.bias.requires_grad_(not frozen)
        self.register_buffer("weight", torch.tensor(1.0), persistent=False)

    def loss(self, x):
        return self.norm(self.linear(x)).square().sum() * self.weight


def state(kind, schedule, dtype, frozen, seed=0):
    torch.manual_seed(seed)
    program = Program(dtype, frozen)
    optimizer = OPTIMIZERS[kind]([p for p in program.parameters() if p.requires_grad])
    return TrainingState(program, optimizer, SCHEDULES[schedule](optimizer), epoch_steps=20)


def step(training, dtype):
    training.optimizer.zero_grad()
    training.program.loss(torch.randn(4, 3).to(dtype)).backward()
    training.optimizer.step()
    training.taken, training.order = training.taken + 1, torch.randperm(20)
    if training.scheduler_of_steps is not None:
        training.scheduler.step()
    training.program.weight.mul_(0.9)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@given(
    st.sampled_from(list(OPTIMIZERS)),
    st.sampled_from(list(SCHEDULES)),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 7),
)
def test_a_training_goes_on_from_any_state_with_the_same_bits(kind, schedule, dtype, frozen, steps):
    first, second = (state(kind, schedule, dtype, frozen, seed) for seed in (0, 1))
    torch.manual_seed(5)
    for _ in range(steps):
        step(first, dtype)
    second.load_state_dict(decode(encode(first.state_dict()), "it"))
    assert bits(second.state_dict()) == bits(first.state_dict())
    after = torch.get_rng_state()
    for training in (first, second):
        torch.set_rng_state(after)
        for _ in range(3):
            step(training, dtype)
    assert bits(second.state_dict()) == bits(first.state_dict())
