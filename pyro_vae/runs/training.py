"""The training of a run by its options: KL weight, optimiser, averaged weights, and early stopping."""

import argparse
import math
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyro_vae.averaging import Averaged
from pyro_vae.checks import positive_number, whole_number
from pyro_vae.conditional import Conditional
from pyro_vae.data import Data
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.random import deferred_interrupt
from pyro_vae.runs.options import OPTIMIZERS, PRECISIONS, SCHEDULES, WITH_BETAS
from pyro_vae.training import History, Training
from pyro_vae.vae import VAE


def train_by(
    args: argparse.Namespace, images: Data, vae: VAE | Conditional, estimator: ELBO, **options: Any
) -> History:
    """Train the program by the options of a run, and leave the parameters to be kept in it; return the history.

    ``options`` are those of ``fit`` that the command line does not set.
    """
    averaged = None if args.ema is None else Averaged(vae, args.ema)
    weighted = None if args.beta == 1 and not args.warm_up else KLWeighted(averaged or vae, args.beta)
    training = Training(
        weighted or averaged or vae,
        measured_on(args.validate, images),
        estimator,
        epochs=args.epochs,
        batch_size=args.batch,
        seed=args.seed,
        schedule=SCHEDULES[args.schedule],
        precision=PRECISIONS[args.precision],
        engine=args.engine,
        clip=args.clip,
        skip_non_finite=args.skip_non_finite,
        **optimizer_of(args, len(images.train), averaged, weighted),
        **options,
    )
    with deferred_interrupt():  # so that Ctrl-C between two epochs, too, is noted
        if not is_over(training.history, args.patience):  # it may be resumed from after its last epoch
            for _ in training:
                if is_over(training.history, args.patience):
                    break
    history = training.finish()
    if averaged is not None:
        vae.load_state_dict(averaged.average.state_dict())
    return history


def measured_on(number: int | None, images: Data) -> Data:
    """Return the data of a training that is measured on so many validation images; None: on all of them."""
    return images if number is None else replace(images, valid=images.valid[:number], looked_at=True)


def optimizer_of(
    args: argparse.Namespace, images: int, averaged: Averaged | None = None, weighted: KLWeighted | None = None
) -> dict[str, Any]:
    """Return the options of ``fit`` for the optimiser, which sets the KL weight and averages after each step."""
    warmed = weighted is not None and args.warm_up
    betas = {} if args.beta2 is None else {"betas": (0.9, args.beta2)}
    if args.optimizer == "adam" and not args.weight_decay and averaged is None and not warmed and not betas:
        return {"lr": args.lr}

    def made(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS[args.optimizer](parameters, lr=args.lr, weight_decay=args.weight_decay, **betas)
        if averaged is not None:
            averaged.follow(optimizer)
        if weighted is not None and warmed:
            steps = args.warm_up * math.ceil(images / args.batch)
            weighted.anneal(optimizer, LinearWarmUp(steps, end=args.beta))
        return optimizer

    return {"optimizer": made}


def is_over(history: History, patience: int | None) -> bool:
    """Return whether ``patience`` epochs have ended since the best one.

    >>> bounds = [-9.0, -7.0, -8.0, -7.5]
    >>> history = History([{"epoch": n, "valid_objective": bound} for n, bound in enumerate(bounds, 1)])
    >>> is_over(history, 2), is_over(history, 3), is_over(history, None)
    (True, False, False)
    """
    best = history.best_epoch
    return patience is not None and best is not None and len(history.rows) - best >= patience


def check_training(args: argparse.Namespace, images: int) -> None:
    """Raise ValueError for options of the training that cannot be, or that mean nothing, before any work."""
    if not 0 <= args.beta < math.inf:
        raise ValueError(f"--beta: wanted a weight of at least 0, got {args.beta:g}")
    if not 0 <= args.warm_up <= args.epochs:
        raise ValueError(f"--warm-up: wanted 0 to the {args.epochs} epochs of the training, got {args.warm_up:g}")
    if args.beta == 0 and args.warm_up:
        raise ValueError("--warm-up: --beta 0 has nothing to grow to; leave one of them out")
    if args.estimator == "free-bits" and (args.beta != 1 or args.warm_up):
        raise ValueError("--free-bits: it counts nats of the KL without a weight; leave --beta and --warm-up out")
    if not 0 <= args.weight_decay < math.inf:
        raise ValueError(f"--weight-decay: wanted a number of at least 0, got {args.weight_decay:g}")
    positive_number("lr", args.lr)
    if args.beta2 is not None:
        if not 0 < args.beta2 < 1:
            raise ValueError(f"--beta2: wanted a number between 0 and 1, such as 0.99, got {args.beta2:g}")
        if args.optimizer not in WITH_BETAS:
            cure = f"write --optimizer {' or '.join(WITH_BETAS)}, or leave --beta2 out"
            raise ValueError(f"--beta2: ignored beside --optimizer {args.optimizer}; {cure}")
    if args.validate is not None:
        whole_number("--validate", args.validate)
    if args.patience is not None:
        whole_number("--patience", args.patience)
        if args.patience >= args.epochs:
            raise ValueError(
                f"--patience: {args.patience} epochs without a better one cannot pass in {args.epochs} epochs; give "
                "fewer, or leave it out"
            )
    if args.ema is not None:
        if not 0 < args.ema < 1:
            raise ValueError(f"--ema: wanted a number between 0 and 1, such as 0.999, got {args.ema:g}")
        steps = args.epochs * math.ceil(images / args.batch)
        if 1 / (1 - args.ema) > steps:
            raise ValueError(
                f"--ema: an average over about {1 / (1 - args.ema):.0f} steps is mostly of the first weights after the "
                f"{steps} steps of this training; give at most {max(0.0, 1 - 10 / steps):.3g}, or more --epochs"
            )
