"""Figures of numbers show their values, names and units."""

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

from pyro_vae import plots
from pyro_vae.training.history import ROW, History


def test_learning_curves_have_both_splits_units_and_the_values_of_the_history():
    rows = [
        {
            "epoch": epoch,
            **{
                f"{split}_{name}": epoch * scale
                for split in ("train", "valid")
                for name, scale in (("bound", -1.0), ("rate", 2.0), ("distortion", 3.0))
            },
        }
        for epoch in (1, 2, 3)
    ]
    figure = plots.learning_curves(rows)
    assert [axes.get_title() for axes in figure.axes] == ["bound (higher is better)", "rate", "distortion"]
    assert figure.axes[0].get_ylabel() == "nats per image" and figure.axes[1].get_xlabel() == "epoch"
    for axes, scale in zip(figure.axes, (-1.0, 2.0, 3.0)):
        assert len(axes.lines) == 2
        for line in axes.lines:
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert np.allclose(line.get_ydata(), [scale, 2 * scale, 3 * scale])


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def entry(kind, particles, variance, snr):
    return {"kind": kind, "particles": particles, "guide": {"variance": variance, "snr": snr}, "model": None}


def test_variances_of_estimators_are_drawn_with_their_intervals_beside_the_ratio_against_particles():
    one = entry("Trace_ELBO", 1, interval(2.0, 1.5, 2.5), interval(0.3, 0.2, 0.4))
    weighted = [
        entry("ImportanceWeighted", K, interval(4.0, 3.0, 8.0), interval(K / 10, None, K / 5)) for K in (100, 10)
    ]
    estimators = {"A": one, "B": weighted[0], "C": weighted[1]}
    variances, ratios = plots.estimator_variance({"": {"estimators": estimators, "draws": 50, "batches": 4}}).axes
    (drawn,) = variances.containers
    points, _, (lines,) = drawn
    assert points.get_xdata().tolist() == [2.0, 4.0, 4.0] and points.get_ydata().tolist() == [0.0, 1.0, 2.0]
    assert [line[:, 0].tolist() for line in lines.get_segments()] == [[1.5, 2.5], [3.0, 8.0], [3.0, 8.0]]
    assert [text.get_text() for text in variances.get_yticklabels()] == ["A", "B", "C"]
    (drawn,) = ratios.containers
    points, _, (lines,) = drawn
    assert points.get_xdata().tolist() == [10.0, 100.0] and points.get_ydata().tolist() == [1.0, 10.0]
    # an end that is not known is the value itself
    assert [line[:, 1].tolist() for line in lines.get_segments()] == [[1.0, 2.0], [10.0, 20.0]]
    # E|Z| of a standard normal Z, the mean of 200 draws of which has a deviation of 1 / √200
    (least,) = (line for line in ratios.lines if line.get_linestyle() == ":")
    assert least.get_ydata()[0] == pytest.approx(scipy.stats.halfnorm.mean() / 200**0.5)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="history: wanted a row an epoch, got none"):
        plots.learning_curves([])
    for wrong in ([{"epoch": 1, "train_bound": 0.0}], [1.0]):
        with pytest.raises(ValueError, match="history: wanted the History of a training, or its rows, got a"):
            plots.learning_curves(wrong)
    for wrong in ({}, [1.0]):
        with pytest.raises(ValueError, match="stages: wanted at least one result of compare_estimators by name, got"):
            plots.estimator_variance(wrong)


def test_a_history_is_drawn_with_the_epoch_that_is_kept():
    history = History([dict.fromkeys(ROW, -5.0 * (epoch - 2) ** 2) | {"epoch": epoch} for epoch in (1, 2, 3)])
    for axes in plots.learning_curves(history).axes:
        (kept,) = (line for line in axes.lines if line.get_linestyle() == ":")
        assert kept.get_xdata()[0] == history.kept_epoch == 2
    (first, *_) = plots.learning_curves(history).axes
    assert first.get_legend().get_texts()[-1].get_text() == "epoch 2, which is kept"


def test_curves_are_drawn_into_axes_that_are_given():
    drawn = Figure().subplots(1, 3).tolist()
    history = History([dict.fromkeys(ROW, 1.0)])
    assert plots.learning_curves(history, "title", axes=drawn) == drawn
    assert drawn[0].get_title() == "title\nbound (higher is better)"
    one = entry("Trace_ELBO", 1, interval(2.0, 1.5, 2.5), interval(0.3, 0.2, 0.4))
    stages = {"first": {"estimators": {"A": one}, "draws": 50, "batches": 4}}
    (ax,) = Figure().subplots(1, 1, squeeze=False)[0]
    assert plots.estimator_variance(stages, axes=[ax]) == [ax] and ax.get_legend()
    with pytest.raises(ValueError, match="axes: wanted 1 axes of matplotlib"):
        plots.estimator_variance(stages, axes=drawn)
