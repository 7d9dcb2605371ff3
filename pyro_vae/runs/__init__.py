"""Runs of commands: a VAE is trained, measured and drawn into a folder, reported, and resumed if it was stopped.

The console command ``pyro-vae`` (``pyro_vae.cli``) has a module with ``main(argv)`` for each of its commands:

- ``train``, ``job``: the main job, from its options to its folder.
- ``evidence``, ``bounds``: how tight the bounds on log p(x) of a trained model are.
- ``compare``, ``variances``: how much gradient estimators vary.
- ``sweep``, ``table``: many trainings, and one table of them.
- ``export``: a trained model for other programs.
- ``data``, ``data_report``: the data sets that are there, and what a folder holds.

A module with a ``main`` reads the command line, and imports neither torch nor the module beside it before the work
begins: ``--help`` and errors come at once. What these, and the experiments, consist of:

- ``parser``: command lines that show defaults and suggest the nearest option.
- ``training``: the training by the options of a run: KL weight, optimiser, averaged weights, early stopping.
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
- ``together``, ``workers``: several runs at a time by joblib, and what each worker does.
- ``columns``: what a table says about a run.
"""

from typing import TYPE_CHECKING

from pyro_vae._lazy import lazy

if TYPE_CHECKING:
    from pyro_vae.printing import estimate as estimate
    from pyro_vae.runs.commands import attempted as attempted
    from pyro_vae.runs.commands import choose_device as choose_device
    from pyro_vae.runs.commands import exit_status as exit_status
    from pyro_vae.runs.commands import load_data as load_data
    from pyro_vae.runs.commands import reason as reason
    from pyro_vae.runs.folders import beside as beside
    from pyro_vae.runs.folders import make_folder as make_folder
    from pyro_vae.runs.folders import results_folder as results_folder
    from pyro_vae.runs.folders import run_folder as run_folder
    from pyro_vae.runs.folders import save_figure as save_figure
    from pyro_vae.runs.folders import write_json as write_json
    from pyro_vae.runs.job import run as run
    from pyro_vae.runs.measurement import has_closed_kl as has_closed_kl
    from pyro_vae.runs.options import add_jobs_option as add_jobs_option
    from pyro_vae.runs.origins import describe as describe
    from pyro_vae.runs.origins import provenance as provenance
    from pyro_vae.runs.reporting import report as report
    from pyro_vae.runs.sweeps import SingleRun as SingleRun
    from pyro_vae.runs.sweeps import is_done as is_done
    from pyro_vae.runs.sweeps import mean as mean
    from pyro_vae.runs.sweeps import over_images as over_images
    from pyro_vae.runs.sweeps import run_missing as run_missing
    from pyro_vae.runs.sweeps import run_once as run_once
    from pyro_vae.runs.sweeps import single_runs as single_runs
    from pyro_vae.runs.sweeps import sweep_status as sweep_status
    from pyro_vae.runs.sweeps import trained as trained
    from pyro_vae.runs.sweeps import warmed_up as warmed_up
    from pyro_vae.runs.together import run_together as run_together
    from pyro_vae.runs.train import main as main

__all__ = [
    "SingleRun",
    "add_jobs_option",
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
    "run_missing",
    "run_once",
    "run_together",
    "save_figure",
    "single_runs",
    "sweep_status",
    "trained",
    "warmed_up",
    "write_json",
]
_HOMES = {
    "SingleRun": "pyro_vae.runs.sweeps",
    "add_jobs_option": "pyro_vae.runs.options",
    "attempted": "pyro_vae.runs.commands",
    "beside": "pyro_vae.runs.folders",
    "choose_device": "pyro_vae.runs.commands",
    "describe": "pyro_vae.runs.origins",
    "estimate": "pyro_vae.printing",
    "exit_status": "pyro_vae.runs.commands",
    "has_closed_kl": "pyro_vae.runs.measurement",
    "is_done": "pyro_vae.runs.sweeps",
    "load_data": "pyro_vae.runs.commands",
    "main": "pyro_vae.runs.train",
    "make_folder": "pyro_vae.runs.folders",
    "mean": "pyro_vae.runs.sweeps",
    "over_images": "pyro_vae.runs.sweeps",
    "provenance": "pyro_vae.runs.origins",
    "reason": "pyro_vae.runs.commands",
    "report": "pyro_vae.runs.reporting",
    "results_folder": "pyro_vae.runs.folders",
    "run": "pyro_vae.runs.job",
    "run_folder": "pyro_vae.runs.folders",
    "run_missing": "pyro_vae.runs.sweeps",
    "run_once": "pyro_vae.runs.sweeps",
    "run_together": "pyro_vae.runs.together",
    "save_figure": "pyro_vae.runs.folders",
    "single_runs": "pyro_vae.runs.sweeps",
    "sweep_status": "pyro_vae.runs.sweeps",
    "trained": "pyro_vae.runs.sweeps",
    "warmed_up": "pyro_vae.runs.sweeps",
    "write_json": "pyro_vae.runs.folders",
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
