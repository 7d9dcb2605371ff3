"""The one file of a saved program: its tensors as safetensors, its description and a checksum as their metadata."""

import hashlib
import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pyro_vae.files import CheckpointError

KEY, DIGEST, ORDERS = "pyro_vae", "sha256", "orders of dimensions"
LARGEST_HEADER = 1 << 24  # bytes


def encode(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return the bytes of a file with these tensors and, in its metadata, a header that JSON holds.

    >>> decode(encode({"format": 4}, {"loc": torch.ones(2)}), "example")
    ({'format': 4}, {'loc': tensor([1., 1.])})
    """
    orders = {name: order for name, value in tensors.items() if (order := _order(value))}
    text = json.dumps({**header, ORDERS: orders} if orders else header)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(tensors, {KEY: text, DIGEST: _digest(text, tensors)})


def decode(data: bytes, name: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file.

    Raises CheckpointError for what is no such file, and for one that is damaged.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"its header is larger than {LARGEST_HEADER >> 20} MiB")
        if any(byte in data[8 : 8 + size] for byte in b"\t\n\r"):  # JSON allows them, and no writer puts them in
            raise ValueError("its header holds tabs or ends of lines")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        text, digest = metadata[KEY], metadata[DIGEST]
        tensors = safetensors.torch.load(data)
        if _digest(text, tensors) != digest:
            raise ValueError("it is damaged: it does not have the checksum that it names")
        header: dict[str, Any] = json.loads(text)
        orders: dict[str, list[int]] = header.pop(ORDERS, {})
        tensors |= {name: _reordered(tensors[name], order) for name, order in orders.items()}
    except Exception as error:  # of any kind, since the file may hold anything
        said = f"no entry {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} is no program that save_vae wrote, or is damaged ({said})") from error
    return header, tensors


def own_tensors(program: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict, each once, by the first of its names.

    Raises ValueError for a state that holds anything else.

    >>> layer = nn.Linear(2, 2)
    >>> list(own_tensors(nn.Sequential(layer, layer)))
    ['0.weight', '0.bias']
    """
    own: dict[int, tuple[str, Tensor]] = {}
    for name, value in program.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_meta:
            kind = "a tensor without values" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"program: wanted tensors in its state dict, got {kind} under {name!r}")
        own.setdefault(id(value), (name, value))
    return dict(own.values())


def _order(value: Tensor) -> list[int] | None:
    """Return the dimensions in the order in which a tensor lies in memory, None for the usual one.

    Products of matrices that lie in another order may differ in their last bits.

    >>> _order(torch.zeros(2, 3)), _order(torch.zeros(2, 3).T)
    (None, [1, 0])
    """
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    return order if value.permute(order).is_contiguous() and not value.is_contiguous() else None


def _reordered(value: Tensor, order: list[int]) -> Tensor:
    return value.permute(order).contiguous().permute([order.index(d) for d in range(value.dim())])


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        if value.numel():
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
