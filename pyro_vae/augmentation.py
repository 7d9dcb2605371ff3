"""Training images that are changed at random, as by the transforms of ``torchvision.transforms.v2``."""

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Generator, Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.data.splits import Split
from pyro_vae.observation import observed
from pyro_vae.random import seeded


class Augmented(nn.Module):
    """A program whose images are changed at random in training; in evaluation mode it is the program itself.

    So ``fit`` trains on changed images, and measures validation and test images as they are:

        from torchvision.transforms import v2

        augmented = Augmented(program, v2.RandomCrop(28, padding=2, padding_mode="edge"))
        fit(augmented, data)

    A transform of torchvision draws once for all images that it gets. ``draws`` is the number of parts of a batch that
    are transformed one after the other, each with a draw of its own. Draws come from torch's own generator: a training
    that is resumed goes on with the same bits. A compiled step calls the transform between its kernels, so that it is
    drawn anew at each step.

    Args:
        program: the program that is trained, of images. A field ``mask`` would have to move with them, and is refused.
        transform: a function from images (n, C, H, W), uint8, to images of the same shape and dtype.
        draws: the number of draws for a batch, at most one an image; 1 transforms all images in the same way.

    >>> from pyro_vae import VAE, guides, likelihoods, networks, priors
    >>> shape = (1, 8, 8)
    >>> likelihood = likelihoods.Normal(networks.MLPDecoder(2, shape, maps=2))
    >>> program = VAE(priors.StandardNormal(2), likelihood, guides.MeanField(networks.MLPEncoder(shape), 2))
    >>> batch = Split(torch.full((4, *shape), 99, dtype=torch.uint8))
    >>> dark = Augmented(program, lambda images: images // 9)
    >>> bool(dark.observe(batch).mean() < 0.1), bool(dark.eval().observe(batch).mean() > 0.3)
    (True, True)
    """

    def __init__(self, program: nn.Module, transform: Callable[[Tensor], Tensor], draws: int = 16):
        super().__init__()
        if not callable(transform):
            raise ValueError(
                f"transform: wanted a function of images (n, C, H, W), got a {type(transform).__name__}; write "
                "torchvision.transforms.v2.Compose([...]) for several"
            )
        self.program: Any = program
        self.transform, self.draws = transform, whole_number("draws", draws)

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's model."""
        return self.program.model(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's guide."""
        return self.program.guide(*args, **kwargs)

    def observe(self, batch: Split, generator: Generator | None = None) -> Any:
        """Return what the program observes of the batch, in training mode of its transformed images.

        Raises ValueError for rows without images or with a ``mask``, and where the transform changes shape or dtype.
        """
        return observed(self.program, self._changed(batch, generator) if self.training else batch, generator)

    def _changed(self, batch: Split, generator: Generator | None) -> Split:
        if batch.images is None or "mask" in batch.fields:
            raise ValueError(
                f"augmentation: wanted images without a mask, got {', '.join(batch.fields)}; transform them in the "
                "program's own observe, so that the mask moves with the images"
            )
        # The transform has random numbers of its own, by a seed, since compiled steps draw in another order.
        seed = torch.randint(1 << 62, (), generator=generator, device="cpu" if generator is None else generator.device)
        _PROGRAMS[id(self)] = self
        return Split.of_fields({**batch.fields, "images": _operator()(batch.images, seed, id(self))})

    def transformed(self, images: Tensor, seed: int) -> Tensor:
        """Return the images (n, C, H, W) as they are transformed by a seed."""
        with seeded(seed, images.device):
            parts = [self.transform(part) for part in images.tensor_split(min(self.draws, len(images)))]
        changed = torch.cat(parts)
        if changed.shape != images.shape or changed.dtype != images.dtype:
            raise ValueError(
                f"transform: wanted images of {images.dtype} and shape {tuple(images.shape)}, as they came, got "
                f"{changed.dtype} and {tuple(changed.shape)}; choose a transform that keeps both"
            )
        return changed


_PROGRAMS: WeakValueDictionary[int, Augmented] = WeakValueDictionary()


@cache
def _operator() -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the transform of a program as an operator of torch, which is one node of a graph, whatever it does inside.

    A CUDA graph would replay it without Python. It is made at its first use: torch looks through all modules for it.
    """

    def augment(images: Tensor, seed: Tensor, program: int) -> Tensor:
        return _PROGRAMS[program].transformed(images, int(seed))

    name, tags = "pyro_vae::augment", (torch.Tag.cudagraph_unsafe,)
    operator = torch.library.custom_op(name, augment, mutates_args=(), tags=tags)
    operator.register_fake(lambda images, seed, program: torch.empty_like(images))
    return operator
