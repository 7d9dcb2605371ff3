"""Another guide for a trained program, as a better proposal: ``refit_guide``."""

import copy
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyro_vae.averaging import Averaged
from pyro_vae.data.splits import Data, Split
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.guides import FullRank, MeanField
from pyro_vae.handlers import KLWeighted, frozen
from pyro_vae.observation import fixed_arguments, observed
from pyro_vae.program import Program
from pyro_vae.random import mode
from pyro_vae.tracing.leaves import find_parameters, left_as_it_was
from pyro_vae.training import fit, warm_cosine


def refit_guide(
    program: Program,
    data: Data | Split,
    guide: nn.Module | None = None,
    *,
    estimator: ELBO | None = None,
    epochs: int = 4,
    batch_size: int | None = None,
    lr: float = 1e-3,
    precision: torch.dtype | None = None,
    engine: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Any:
    """Return a copy of a program with another guide, trained while the model stays as it is (Cremer et al. 2018).

    The copy has the same log p(x). Its guide proposes better codes, so that importance sampling and annealing come
    closer with fewer draws. The program itself is left as it is.

    The guide may be trained on the very rows that are measured: it changes no parameter of the model, and
    ``log_evidence`` draws anew, so that the estimate of p(x) stays unbiased. Give the split then in place of the data.

    Args:
        program: a trained program.
        data: ``data.train`` trains the guide and ``data.valid`` chooses the epoch; a ``Split`` is both.
        guide: the new guide, a module as the program's attribute ``posterior`` is, such as ``guides.Flow(...)``; in a
            program without this attribute a module whose call ``guide(*args)`` samples the latent sites. A copy of it
            is trained, so that it may have the encoder of the program. If it is not given, a ``MeanField`` posterior
            becomes a ``FullRank`` one that starts as the same distribution, and any other guide is trained further.
        estimator: ``StickingTheLanding()`` if not given, whose gradient vanishes where the guide is exact (Roeder et
            al. 2017). ``DoublyReparameterized(K)`` trains a broader proposal.
        epochs, batch_size, lr, precision, engine, seed, progress: as in ``fit``; the learning rate falls to zero.

    Raises ValueError if nothing of the guide can be trained, if model and guide share parameters, for ``Averaged`` and
    ``KLWeighted``, and for what ``fit`` refuses.

    >>> from pyro_vae import VAE, evaluate, guides, likelihoods, load, networks, priors
    >>> digits = load("digits")
    >>> likelihood = likelihoods.Bernoulli(networks.MLPDecoder(4, digits.shape, maps=1, hidden=(16,)))
    >>> vae = VAE(
    ...     priors.StandardNormal(4), likelihood, guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 4)
    ... )
    >>> history = fit(vae, digits, epochs=3, lr=1e-2, progress=False)
    >>> refitted = refit_guide(vae, digits, epochs=3, lr=1e-2, progress=False)
    >>> bool(evaluate(refitted, digits.test).bound.mean() > evaluate(vae, digits.test).bound.mean())
    True
    """
    _check_measured_as_trained(program)
    refitted = copy.deepcopy(program)
    refitted = _with_guide(refitted, _widened(refitted) if guide is None else _copied(guide))
    given = data if isinstance(data, Data) else Data("rows", data, data, data)
    with frozen(*_model_parameters(refitted, given.train)), mode(refitted, refitted.training):
        held = HeldModel(refitted)
        options = {"precision": precision, "engine": engine, "seed": seed, "progress": progress}
        fit(
            held,
            given,
            StickingTheLanding() if estimator is None else estimator,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=warm_cosine,
            **options,
        )
    return refitted


class Wrapped(nn.Module):
    """Base class of programs that change one thing of another program, and are it in all others."""

    def __init__(self, program: Any):
        super().__init__()
        self.program = program

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's model."""
        return self.program.model(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's guide."""
        return self.program.guide(*args, **kwargs)

    def observe(self, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Return what the program observes of the batch."""
        return observed(self.program, batch, generator)


class HeldModel(Wrapped):
    """A program in training, of which modules whose parameters are all frozen stay in evaluation mode.

    So BatchNorm and dropout of the model compute as they do when it is measured.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> HeldModel(LinearGaussian(torch.ones(3, 1))).train().program.training
    True
    """

    def train(self, mode: bool = True) -> "HeldModel":
        """Set the mode of all modules that are trained."""
        super().train(mode)
        for module in self.program.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


class Guided(Wrapped):
    """A program with another guide, a module whose call ``guide(*args)`` samples the latent sites."""

    def __init__(self, program: Any, guide: nn.Module):
        super().__init__(program)
        self.proposal = guide

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the other guide."""
        return self.proposal(*args, **kwargs)


def _check_measured_as_trained(program: Any) -> None:
    """Raise ValueError for a program that is another one in training than in evaluation mode."""
    for kind, inner in ((Averaged, "average"), (KLWeighted, "program")):
        if isinstance(program, kind):
            raise ValueError(
                f"program: wanted the one that is measured, got {kind.__name__}, in which the guide would be trained "
                f"for another one; write refit_guide(program.{inner}, ...)"
            )


def _widened(program: Any) -> nn.Module | None:
    """Return a full-rank guide that starts as the program's mean-field one, or a copy of any other posterior."""
    posterior = getattr(program, "posterior", None)
    if type(posterior) is not MeanField:
        return copy.deepcopy(posterior)  # the prior may hold the same module
    frozen_whole = not any(parameter.requires_grad for parameter in posterior.parameters())  # as an average is
    widened = FullRank.started_at(posterior)
    return widened.requires_grad_(True) if frozen_whole else widened


def _copied(guide: Any) -> nn.Module:
    """Return a copy of a guide, which may share modules with the program that must not change."""
    if not isinstance(guide, nn.Module):
        raise ValueError(f"guide: wanted a module, such as guides.Flow(encoder, latent=2), got {type(guide).__name__}")
    return copy.deepcopy(guide)


def _with_guide(program: Any, guide: nn.Module | None) -> Any:
    if guide is None:
        return program
    if not program.training:
        guide.eval()
    if not isinstance(getattr(program, "posterior", None), nn.Module):
        return Guided(program, guide)
    program.posterior = guide
    return program


def _model_parameters(program: Any, rows: Split) -> list[torch.Tensor]:
    """Return the parameters of the model; raise ValueError unless the guide has some of its own and shares none."""
    args = fixed_arguments(program, rows[:2])
    with left_as_it_was(program.model, program.guide, keep_new=True):  # such as the running means of BatchNorm
        found, *_ = find_parameters(program.model, program.guide, args)
    if found.shared:
        raise ValueError(
            f"guide: it shares the parameters {', '.join(found.shared[:3])} with the model, which must not change; "
            "give a guide of its own"
        )
    if not found.guide:
        raise ValueError("guide: it has no parameter that can be trained; give another one, or unfreeze it")
    guides = {id(parameter) for parameter in found.guide.values()}
    return [parameter for parameter in program.parameters() if id(parameter) not in guides]
