"""What ``print`` and notebooks show of a comparison: a table of bounds, one of each gradient, and which agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pyro_vae.comparison.intervals import Estimate, short
from pyro_vae.showing import Shown, on_one_line

if TYPE_CHECKING:
    from pyro_vae.comparison.results import Agreement, Comparison

GROUPS = ("guide", "model")
MANY = 6  # estimators, above which the table shows only the pairs that should agree
WIDTH = 24  # characters of a name in the table, at most


def report(comparison: Comparison) -> list[Shown]:
    """Return the tables of a comparison, of at most 110 characters a line."""
    tables = [_bounds(comparison)]
    if comparison.batches > 1:
        tables.append(_between_batches(comparison))
    tables += [table for group in GROUPS for table in _gradients(comparison, group)]
    tables += _agreements(comparison)
    return [*tables[:-1], replace(tables[-1], notes=["", *_notes(comparison)])]


def _bounds(comparison: Comparison) -> Shown:
    where = f"{comparison.batches} batches" if comparison.batches > 1 else "one batch"
    unit = f" of {comparison.images} images; nats per image" if comparison.images else "; nats for all data"
    settings = f"{comparison.draws} draws each, seed {comparison.seed}, at {where}"
    rows = [
        (
            name[:WIDTH],
            f"{entry.bound.mean:.4f} ± {entry.bound.standard_error:.4f}{' ' if entry.is_bound else '*'}",
            short(entry.bound.variance),
            short(entry.seconds),
        )
        for name, entry in comparison.estimators.items()
    ]
    title = f"{len(rows)} estimators, {settings}{unit}"
    return Shown(title, rows, ["", "bound", "variance", "seconds"])


def _between_batches(comparison: Comparison) -> Shown:
    rows = []
    for name, entry in comparison.estimators.items():
        found = [part.minibatch_variance if part else None for part in (entry.bound, entry.guide, entry.model)]
        rows.append((name[:WIDTH], *(short(math.nan if value is None else value) for value in found)))
    return Shown("variance between batches, of the bound and of the gradients", rows, ["", "bound", *GROUPS])


def _gradients(comparison: Comparison, group: str) -> Iterator[Shown]:
    first = getattr(next(iter(comparison.estimators.values())), group)
    if first is None:
        return
    rows = []
    for name, entry in comparison.estimators.items():
        numbers = getattr(entry, group)
        cost = short(comparison.cost(name, group))
        rows.append((name[:WIDTH], numbers.variance, numbers.snr, numbers.norm_ratio, cost))
    title = f"gradient of the {group}'s {first.parameters:,} parameters, with 95 % intervals"
    yield Shown(title, rows, ["", "(a) variance", "(b) |mean| / sd", "(c) ‖mean‖ / ‖sd‖", "cost"])


def _agreements(comparison: Comparison) -> Iterator[Shown]:
    pairs = [pair for pair in comparison.agreements if pair.expected or len(comparison.estimators) <= MANY]
    if not pairs:
        return
    groups = [group for group in GROUPS if any(pair.group == group for pair in pairs)]
    wrong = comparison.disagreements()
    rows = []
    for (first, second), found in itertools.groupby(pairs, key=lambda pair: (pair.first, pair.second)):
        entries = {pair.group: pair for pair in found}
        expected = "=" if any(pair.expected for pair in entries.values()) else " "
        mark = "!" if any(pair in wrong for pair in entries.values()) else expected
        cells = [cell for group in groups for cell in _agreement(entries.get(group))]
        rows.append((f"{mark} {first[:21]} – {second[:21]}", *cells))
    title = "mean gradients: = should agree, ! and do not; the largest z (median if equal), p of a global test"
    yield Shown(title, rows, ["", *(heading for group in groups for heading in (f"{group}: z", "p"))])


def _agreement(pair: Agreement | None) -> tuple[str, str]:
    if pair is None:
        return "", ""
    return f"{short(pair.largest_z)} ({pair.typical_largest_z:.1f})", short(pair.p_value)


def _notes(comparison: Comparison) -> Iterator[str]:
    floor, reference = math.sqrt(2 / (math.pi * comparison.draws * comparison.batches)), comparison.reference[:WIDTH]
    yield f"(b) is about {floor:.2g} where the mean is zero. Cost: variance (a) × seconds, {reference} = 1."
    if any(estimate.doubtful for estimate in _estimates(comparison)):
        yield "? a few draws make the width of the interval: such tails may be too heavy for any; give more draws"
    if comparison.no_bound:
        yield on_one_line(f"* minus the loss, no bound on log p(x): {comparison.no_bound}")
    elif any(not entry.is_bound for entry in comparison.estimators.values()):
        yield "* minus the loss of an estimator that has no bound"
    silent = _undescribed(comparison)
    if silent:
        yield f"no gradient is known to agree with that of {', '.join(silent[:2])}{', …' * (len(silent) > 2)}:"
        yield "  give agree=[(name, name), ...], or the class a description (pyro_vae.estimators.Description)"
    if comparison.shared:
        yield f"shared by model and guide, counted as the guide's: {len(comparison.shared)} tensors"
    for name, why in comparison.eager.items():
        yield on_one_line(f"drawn one by one: {name[:WIDTH]}: {why}")
    if len(comparison.estimators) > MANY:
        yield "pairs that need not agree are in to_dict()"


def _undescribed(comparison: Comparison) -> list[str]:
    """Return the bounds that no test compares, because nothing is known of what they estimate."""
    known = {name for pair in comparison.agreements if pair.expected for name in (pair.first, pair.second)}
    return [
        name[:WIDTH]
        for name, entry in comparison.estimators.items()
        if entry.is_bound and not entry.estimates and name not in known and len(comparison.estimators) > 1
    ]


def _estimates(comparison: Comparison) -> Iterator[Estimate]:
    for entry in comparison.estimators.values():
        for numbers in filter(None, (entry.guide, entry.model)):
            yield from (numbers.variance, numbers.snr, numbers.norm_ratio)
