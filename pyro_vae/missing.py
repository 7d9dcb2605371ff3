"""Missing values in training: a program that scores only what was seen (Mattei & Frellsen 2019).

    log p(x_seen | z) = Σ_i m_i log p(x_i | z),    m_i = 1 where x_i was seen and 0 where it is missing.

Its bound is one on log p(x_seen). Trained by ``ImportanceWeighted(K)`` this is MIWAE. It is right where values are
missing at random: whether a value is missing may depend on the values that are seen, and on no others.
"""

from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Independent, biject_to

from pyro_vae.augmentation import Augmented
from pyro_vae.construction import Constructed
from pyro_vae.data import Split
from pyro_vae.data.fields import MASKED
from pyro_vae.observation import arguments


class Masked(Constructed):
    """A program of (x, mask), of which only the seen elements count: ``model(x, mask)`` and ``guide(x, mask)``.

    ``mask`` is bool and of the shape of x, True where a value was seen. What x holds elsewhere, NaN included, changes
    no bound, no gradient and no evidence. The guide sees zeros there. A row in which nothing was seen is allowed: its
    log p is 0 and its bound minus the rate.

    Args:
        program: takes x, and perhaps further arguments; they follow the mask, as in ``model(x, mask, labels)``.
        site: the name of the observed site that holds x, whose elements must be independent given z.
        mask_as_input: whether the guide sees the mask, too: as further channels of images, or columns of a table, to
            the right of those of x. Build its network for twice as many.

    ``observe`` takes a batch with a field ``mask``, or a table in which missing values are NaN. Raises ValueError for
    an ``Augmented`` program, which would move the images and not their mask.

    >>> from pyro_vae.estimators import ImportanceWeighted
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = Masked(LinearGaussian(torch.ones(3, 1)))
    >>> x = torch.tensor([[0.5, torch.nan, 2.0], [torch.nan, torch.inf, -1.0]])
    >>> loss = ImportanceWeighted(K=20)(program.model, program.guide)(x, x.isfinite())
    >>> bool(loss.isfinite())
    True
    """

    program: Any

    def __init__(self, program: nn.Module, *, site: str = "x", mask_as_input: bool = False):
        super().__init__()
        if any(isinstance(part, Augmented) for part in program.modules()):
            raise ValueError(
                "program: wanted one whose images stay as they are, got Augmented, which would move them and not their "
                "mask; transform images and mask in the program's own observe"
            )
        self.program, self.site, self.mask_as_input = program, site, mask_as_input

    def model(self, x: Tensor, mask: Tensor, *rest: Any) -> Any:
        """Run the program's model; of the site x it scores the seen elements only."""
        check_mask(x, mask)
        with SeenElements(mask, self.site):
            return self.program.model(torch.where(mask, x, 0), *rest)

    def guide(self, x: Tensor, mask: Tensor, *rest: Any) -> Any:
        """Run the program's guide on x with zeros in place of what is missing."""
        check_mask(x, mask)
        x = torch.where(mask, x, 0)
        return self.program.guide(torch.cat([x, mask.to(x.dtype)], 1) if self.mask_as_input else x, *rest)

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Any, ...]:
        """Return (x, mask, ...): what the program observes of the seen values, x being zero elsewhere.

        Raises ValueError for a batch without a field ``mask`` and without a table.
        """
        batch, mask = without_missing(batch)
        whole = Split.of_fields({name: rows for name, rows in batch.fields.items() if name != "mask"})
        x, *rest = arguments(self.program, whole, generator)
        check_mask(x, mask)
        return torch.where(mask, x, 0), mask, *rest


class SeenElements(Messenger):
    """Context manager in which an observed site scores those elements only that are True in a mask.

    The mask has the shape of the site's value. Where it is False the value takes a number that the distribution
    allows, so that no gradient there can be NaN. Raises ValueError if the site is not met, or if its elements are not
    independent.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> x, mask = torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])
    >>> with SeenElements(mask), pyro.poutine.trace() as run:
    ...     value = pyro.sample("x", dist.LogNormal(torch.zeros(1, 2), 1.0).to_event(1), obs=x)
    >>> run.trace.log_prob_sum(), value
    (tensor(-0.9189), tensor([[1., 1.]]))
    """

    def __init__(self, mask: Tensor, site: str = "x"):
        super().__init__()
        self.mask, self.site, self.met = mask, site, False

    def __enter__(self) -> "SeenElements":
        self.met = False
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and not self.met:
            raise ValueError(
                f"the model has no observed site {self.site!r}, so that nothing was masked; name it, site="
            )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site or not msg["is_observed"]:
            return
        self.met = True
        elements = innermost(msg["fn"])
        if elements.event_shape:
            raise ValueError(
                f"site {self.site!r}: the elements of its {type(elements).__name__} are not independent given z, so "
                "that the density of a part of them is not known here; write it as Normal(...).to_event(n), for "
                "example; leave Masked out where the distribution takes NaN for a missing value"
            )
        if msg["fn"].event_shape != self.mask.shape[self.mask.dim() - msg["fn"].event_dim :]:
            raise ValueError(
                f"site {self.site!r}: its events are {tuple(msg['fn'].event_shape)}, the mask is "
                f"{tuple(self.mask.shape)}; build the network of the likelihood for the shape of x"
            )
        msg["value"] = torch.where(self.mask, msg["value"], allowed_value(elements))
        msg["fn"] = masked(msg["fn"], self.mask)


def masked(fn: Any, mask: Tensor) -> TorchDistributionMixin:
    """Return a distribution of independent elements that scores only those that are True in the mask.

    >>> import pyro.distributions as dist
    >>> masked(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([True, False])).log_prob(torch.zeros(2))
    tensor(-0.9189)
    """
    if isinstance(fn, Independent):
        base: Any = masked(fn.base_dist, mask)
        return base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return masked(fn.base_dist, mask).mask(fn._mask)
    return fn.mask(mask)


def innermost(fn: Any) -> TorchDistribution:
    """Return the distribution of single elements inside ``Independent`` and masks."""
    return innermost(fn.base_dist) if isinstance(fn, Independent | MaskedDistribution) else fn


@torch.no_grad()
def allowed_value(fn: Distribution) -> Tensor | float:
    """Return a number inside the support of a distribution of numbers, at which its density is finite.

    Raises ValueError where none is known.

    >>> import pyro.distributions as dist
    >>> allowed_value(dist.Normal(5.0, 1.0)), allowed_value(dist.Poisson(5.0)), allowed_value(dist.Beta(2.0, 3.0))
    (tensor(0.), 0, tensor(0.5000))
    """
    support: Any = fn.support
    if support.is_discrete and hasattr(support, "lower_bound"):
        return support.lower_bound
    if fn.has_enumerate_support:
        return fn.enumerate_support(expand=False).flatten()[0]
    if support.is_discrete:
        return 0
    try:
        return biject_to(support)(torch.zeros(()))
    except NotImplementedError as error:
        raise ValueError(
            f"no number inside the support of {type(fn).__name__} is known, to stand for a missing value; register a "
            "transform to it by torch.distributions.biject_to.register"
        ) from error


def check_mask(x: Tensor, mask: Any) -> None:
    """Raise ValueError unless the mask is bool and of the shape of x.

    >>> check_mask(torch.zeros(2, 3), torch.ones(2, 3))
    Traceback (most recent call last):
        ...
    ValueError: mask: wanted torch.bool, True where a value was seen, got torch.float32; write mask.bool()
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask: wanted a bool tensor of the shape of x, got {type(mask).__name__}; write (x, mask)")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: wanted torch.bool, True where a value was seen, got {mask.dtype}; write mask.bool()")
    if mask.shape != x.shape:
        shapes = f"{tuple(x.shape)}, got {tuple(mask.shape)}"
        raise ValueError(f"mask: wanted one value for each of x, shape {shapes}; write mask.expand(x.shape)")


def without_missing(batch: Any) -> tuple[Split, Tensor]:
    """Return a batch whose missing values are replaced by others, and its mask; NaN in a table is missing.

    The replacements are zeros, in a table the column's first seen value, so that any likelihood takes them.

    >>> batch, mask = without_missing(Split(table=torch.tensor([[1.0, torch.nan], [2.0, 3.0]])))
    >>> batch.table, mask[0]
    (tensor([[1., 3.],
            [2., 3.]]), tensor([ True, False]))
    """
    fields = batch.fields if isinstance(batch, Split) else {}
    if "mask" not in fields and "table" not in fields:
        got = f"a Split of {', '.join(fields)}" if fields else type(batch).__name__
        raise ValueError(
            f"batch: wanted a Split with a field mask, bool and True where a value was seen, got {got}; write "
            "Split(images, mask=mask)"
        )
    mask = fields["mask"] if "mask" in fields else ~fields["table"].isnan()
    filled = {"mask": mask}
    for name in MASKED:
        if name in fields and fields[name].shape == mask.shape:
            mask = mask & ~fields[name].isnan()
            filled |= {"mask": mask, name: torch.where(mask, fields[name], _stand_in(name, fields[name], mask))}
    return Split.of_fields({**fields, **filled}), mask


def _stand_in(name: str, values: Tensor, mask: Tensor) -> Tensor:
    """Return zero or, for a table, a seen value of each column; zero in a column without any."""
    if name != "table":
        return values.new_zeros(())
    first = values.gather(0, mask.int().argmax(0, keepdim=True))
    return torch.where(mask.any(0), first, 0)
