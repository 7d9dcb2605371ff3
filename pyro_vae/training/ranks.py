"""Data-parallel training in the processes of ``torchrun``: each has its share of every batch and its own noise.

Functions are named as in ``torch.distributed``. Without ``torchrun`` there is one process, of rank 0, and every
function returns what it was given.

Each step sums the loss and the gradients of all shares, in one message. As a loss is a sum over the batch, any number
of ranks takes the same step as one.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def processes(minutes: float = 30.0) -> Iterator[None]:
    """Context manager that connects the processes that ``torchrun`` started: gloo on CPUs, NCCL on GPUs.

    A rank raises RuntimeError if it waits for a message longer than ``minutes``, or if another rank dies.

    >>> with processes():
    ...     rank(), world_size()
    (0, 1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Imported later, it would hold this group in its defaults, and with it the group's threads until Python ends: one
    # that then lets go of a tensor aborts the process.
    import_module("torch.distributed.nn.functional")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them; rank 0 reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(index: Tensor) -> Tensor:
    """Return this rank's part of a batch: every ``world_size``-th image, so that parts differ by at most one image.

    >>> share(torch.arange(3))
    tensor([0, 1, 2])
    """
    return index[rank() :: world_size()]


def own_seed(seed: int) -> int:
    """Return a seed for this rank's noise; for rank 0 it is the seed itself.

    >>> own_seed(3)
    3
    """
    return seed + rank() * 1_000_003


def broadcast(value: Any) -> Any:
    """Return the value of rank 0 on every rank; all ranks must call it.

    >>> broadcast({"step": 3})
    {'step': 3}
    """
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all ranks, in one message; all ranks must call it.

    >>> loss = torch.tensor(2.0)
    >>> all_reduce([loss])
    >>> loss
    tensor(2.)
    """
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(total.view_as(tensor))


def all_reduce_max(number: int) -> int:
    """Return the largest of the numbers of all ranks on every rank; all ranks must call it.

    >>> all_reduce_max(2)
    2
    """
    if world_size() == 1:
        return number
    box = torch.tensor(number)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def all_reduce_sum(number: float) -> float:
    """Return the sum of the numbers of all ranks on every rank; all ranks must call it.

    >>> all_reduce_sum(2.5)
    2.5
    """
    if world_size() == 1:
        return number
    numbers: list[Any] = [None] * world_size()
    dist.all_gather_object(numbers, number)
    return sum(numbers)


def all_gather(part: Tensor) -> Tensor:
    """Return the parts of all ranks, concatenated, on every rank; all ranks must call it.

    >>> all_gather(torch.ones(2))
    tensor([1., 1.])
    """
    if world_size() == 1:
        return part
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, part.cpu())
    return torch.cat(parts).to(part.device)


def check_batches(images: int, batch_size: int) -> None:
    """Check that every rank has an image in every batch of an epoch. Raises ValueError.

    >>> check_batches(images=100, batch_size=33)
    """
    last = images % batch_size or batch_size
    if min(last, batch_size) < world_size():
        raise ValueError(
            f"batch_size: {world_size()} ranks share each batch, and of {images} images in batches of {batch_size} the "
            f"smallest has {min(last, batch_size)}; take another batch size, or fewer ranks"
        )


def check_held_out(images: int, name: str = "data.valid") -> None:
    """Check that every rank has one of the images that all measure together. Raises ValueError.

    >>> check_held_out(images=1)
    """
    if images < world_size():
        raise ValueError(
            f"{name}: {world_size()} ranks share these images, of which there are {images}; take more of them, "
            "or fewer ranks"
        )
