"""Runs of commands: a VAE is trained, measured and drawn into a folder, reported, and resumed if it was stopped.

- ``train``: the main job, from its options to its folder.
- ``training``: its training by these options: KL weight, optimiser, averaged weights, early stopping.
- ``arguments``: the options of the main job, recipes, and defaults that suit the images.
- ``options``: options that several commands have.
- ``page``: a page of all parts and their options.
- ``commands``: how a command starts and ends: device, data, exit status, the command that resumes it.
- ``measurement``: what metrics.json says about the test images.
- ``drawing``: the pictures.
- ``reporting``: the plan and the short table.
- ``resume``: whether a folder may be written, whether its run goes on, how results take their place.
- ``folders``: files and folders that are written whole or not at all.
- ``origins``: where numbers come from: data, versions, commit.
- ``sweeps``: experiments of many trainings, which several commands can share.
"""

from pyro_vae.runs.commands import attempted, choose_device, exit_status, load_data, reason
from pyro_vae.runs.folders import beside, make_folder, results_folder, run_folder, save_figure, write_json
from pyro_vae.runs.measurement import has_closed_kl
from pyro_vae.runs.origins import describe, provenance
from pyro_vae.runs.reporting import estimate, report
from pyro_vae.runs.sweeps import (
    is_done,
    mean,
    over_images,
    run_once,
    single_runs,
    sweep_status,
    trained,
    warmed_up,
)
from pyro_vae.runs.train import main, run

__all__ = [
    "attempted",
    "beside",
    "choose_device",
    "describe",
    "estimate",
    "exit_status",
    "has_closed_kl",
    "is_done",
    "load_data",
    "main",
    "make_folder",
    "mean",
    "over_images",
    "provenance",
    "reason",
    "report",
    "results_folder",
    "run",
    "run_folder",
    "run_once",
    "save_figure",
    "single_runs",
    "sweep_status",
    "trained",
    "warmed_up",
    "write_json",
]
