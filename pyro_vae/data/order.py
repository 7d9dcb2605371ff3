"""The order in which an epoch takes its training rows, and their reading in this order."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pyro_vae.data import mapped
from pyro_vae.data.mapped import image_bytes, is_mapped, take, take_blocks

BUFFER = 64 << 20  # bytes among which rows are shuffled


def shuffled(fields: Sequence[Tensor], generator: Generator | None = None) -> Tensor:
    """Return the row numbers 0 … N − 1 in random order, each once, on the device of the first field (N, ...).

    All orders of rows in memory are equally likely. If a field is mapped from a file larger than ``BUFFER``, its rows
    are read in blocks, because random rows of a cold file are slow. The file is cut into blocks of about 2 MB,
    the blocks are put in random order, and every ``BUFFER`` bytes of them are shuffled row by row. Each row is
    equally likely at each place, but the rows of a block lie within one buffer, and are together in a batch more often
    than by chance: a batch holds rows of up to 32 blocks, drawn anew each epoch. This is a fair sample of a file in
    random order, and of one whose like rows fill many blocks. If like rows fill about a block, such as the frames of a
    film, shuffle the file once.

    >>> shuffled([torch.zeros(5, 3)]).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    count, largest = len(fields[0]), max(filter(is_mapped, fields), key=lambda field: field.nbytes, default=fields[0])
    if not is_mapped(largest) or largest.nbytes <= BUFFER:
        return torch.randperm(count, device=fields[0].device, generator=generator)
    blocks = torch.arange(count).split(max(1, mapped.BLOCK // image_bytes(largest)))
    order = torch.cat([blocks[number] for number in torch.randperm(len(blocks), generator=generator).tolist()])
    buffers = order.tensor_split(-(-largest.nbytes // BUFFER))  # of equal sizes, so that the last one is no rest
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in buffers])


def taken(field: Tensor, index: Tensor) -> Tensor:
    """Return ``field[index]`` for an index that is a part of the order of ``shuffled``."""
    return (take_blocks if is_mapped(field) and field.nbytes > BUFFER else take)(field, index)
