#!/usr/bin/env python
"""How well does a VAE of mixed columns model real tables, in their own units, and fill in what is missing?

    python experiments/tables.py
    python experiments/tables.py --tables wine --seeds 0 --quick
    python experiments/tables.py --report

The program is a VAE with the likelihood ``Mixed``. Each run, a table and a seed that splits and shuffles its rows, is
trained twice: on all cells, to measure log p(x) of the test rows (nats per row, importance sampling), and without a
share of the cells, to fill in those of the test rows. Beside log p(x) stand densities that are known by other means
(see ``mixed_tables/baselines.py``); beside the imputation the means, or most frequent levels, of the columns.

Each run is saved in --out/tables when it ends and is not done again. All runs there are gathered: tables.json,
tables.txt, and of the first seed of each table tables_<name>_marginals.png and tables_<name>_pairs.png.
"""

import argparse
import math
import shutil
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.mixed_tables.baselines import baselines
from experiments.mixed_tables.filling import errors, simple
from experiments.mixed_tables.frames import FRAMES, prepared, without_cells
from experiments.mixed_tables.pictures import marginals, pairs
from pyro_vae import (
    VAE,
    Checkpoints,
    UntrustedEvidence,
    evaluate,
    fit,
    fixed_x,
    guides,
    likelihoods,
    log_evidence,
    priors,
    tables,
)
from pyro_vae.data import Data
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.imputation import UntrustedImputation, impute
from pyro_vae.likelihoods.columns import SMALLEST_LOG_SCALE
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    estimate,
    make_folder,
    mean,
    provenance,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser
from pyro_vae.training import warm_cosine

RUNS = "tables"  # folder in --out
SETTINGS = ("steps", "batch", "lr", "latent", "hidden", "train_particles", "particles", "missing", "rows")
QUICK = {"steps": 200, "particles": 50, "rows": 1000}
PAIRS = {
    "randhie": ["mdvis", "lncoins", "lpi", "fmde", "disea"],
    "wine": ["alcohol", "flavanoids", "color_intensity", "proline", "target"],
    "breast-cancer": ["mean radius", "mean texture", "mean concavity", "worst area", "target"],
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=FRAMES, default=[*FRAMES], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--latent", type=int, default=10, metavar="D", help="dimensions of z (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, metavar="UNITS", help="width of the two hidden layers")
    parser.add_argument("--steps", type=int, default=4000, help="of Adam (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="rows of a step, fewer if the table is small")
    parser.add_argument("--lr", type=float, default=3e-3, help="largest step of Adam")
    parser.add_argument("--train-particles", type=int, default=5, metavar="K", help="of the bound that is trained")
    parser.add_argument("--particles", type=int, default=500, metavar="K", help="of log p(x) and of the imputation")
    parser.add_argument("--missing", type=float, default=0.2, help="share of the cells that are taken away")
    parser.add_argument("--rows", type=int, default=None, help="take only so many rows of a table")
    parser.add_argument("--quick", action="store_true", help=f"a short run: {QUICK}")
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="train nothing: gather the runs in --out")
    parser.add_argument("--out", type=home_path, default=Path("figures"), help="folder of the results")
    args = parser.parse_args(argv)
    vars(args).update(QUICK if args.quick else {})
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""

    def gather(args: argparse.Namespace) -> str:
        return report(args.out, single_runs(args.out / RUNS))

    return sweep_status(lambda: parse_arguments(argv), work, gather)


def work(args: argparse.Namespace) -> int:
    """Do the runs that are not there yet; return how many failed."""
    if not 0 < args.missing < 1:
        raise ValueError(f"--missing: wanted a share between 0 and 1, got {args.missing}")
    folder, runs = args.out / RUNS, []
    make_folder(folder)
    for seed in args.seeds:
        for name in args.tables:
            entries = {"table": name, "seed": seed, "settings": {key: getattr(args, key) for key in SETTINGS}}
            path, do = folder / f"{name}-seed{seed}.json", partial(run, name, seed, args, folder)
            runs.append(SingleRun(path, f"{name}, seed {seed}", entries, do, line))
    return run_missing(runs, args.jobs)


def run(name: str, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and measure on one table; draw samples of the first seed."""
    schema, data = prepared(name, seed, args.rows)
    started = time.perf_counter()
    kept = folder / f"{name}-seed{seed}"  # the checkpoints, until the run has ended
    vae, best = trained(schema, data, args, seed, kept / "complete")
    seconds = time.perf_counter() - started
    result = {
        "schema": str(schema).splitlines(),
        "train_rows": len(data.train),
        "test_rows": len(data.test),
        "smallest_log_scale": SMALLEST_LOG_SCALE,
        "training_seconds": seconds,
        "best_epoch": best,
        "log_px": densities(vae, schema, data, args, seed),
        "imputation": imputation(schema, data, args, seed, kept / "missing"),
    }
    draw(vae, schema, data, name, folder, seed)
    shutil.rmtree(kept)
    return result


def build(schema: tables.Schema, latent: int, hidden: int) -> VAE:
    """Return the program: two hidden layers in each direction."""
    features = tables.Features(schema)
    encoder = nn.Sequential(features, *layers(features.out_features, hidden))
    likelihood = likelihoods.Mixed(nn.Sequential(*layers(latent, hidden)), schema, features=hidden)
    return VAE(priors.StandardNormal(latent), likelihood, guides.MeanField(encoder, latent, features=hidden))


def layers(inputs: int, width: int) -> list[nn.Module]:
    """Return two hidden layers."""
    return [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]


def trained(
    schema: tables.Schema, data: Data, args: argparse.Namespace, seed: int, folder: Path
) -> tuple[VAE, int | None]:
    """Return a trained program, and the epoch of the best bound of the validation rows, whose parameters it has.

    A training that was stopped goes on from the checkpoint in the folder.
    """
    torch.manual_seed(seed)
    vae = build(schema, args.latent, args.hidden)
    batch = min(args.batch, max(16, len(data.train) // 8))  # of a small table, so that epochs are not single steps
    history = fit(
        vae,
        data,
        ImportanceWeighted(args.train_particles),
        epochs=math.ceil(args.steps / math.ceil(len(data.train) / batch)),
        batch_size=batch,
        lr=args.lr,
        seed=seed,
        schedule=warm_cosine,
        checkpoints=Checkpoints(folder, seconds=20, resume=True),
        progress=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return vae, history.best_epoch


def densities(vae: VAE, schema: tables.Schema, data: Data, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return log p(x) of the test rows in nats per row, and by how much the VAE is above the others."""
    x = fixed_x(vae, data.test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these rows
        evidence = log_evidence(vae, x, particles=args.particles, seed=seed)
    ours = np.asarray(evidence.log_px)
    found = {
        "VAE": {
            **row_mean(ours),
            "monte_carlo_error": float(np.sqrt((np.asarray(evidence.standard_error) ** 2).sum()) / len(ours)),
            "untrusted": evidence.to_dict()["share_pareto_k_above_0.7"],
            "elbo": evaluate(vae, x, particles=20, seed=seed).summary()["bound"],
        }
    }
    train, valid, test = (getattr(data, part).table.numpy() for part in ("train", "valid", "test"))
    for name, score in baselines(schema, train, valid, seed).items():
        theirs = score(test)
        found[name] = {**row_mean(theirs), "vae_is_above_by": row_mean(ours - theirs)}
    return found


def row_mean(values: np.ndarray) -> dict[str, float]:
    """Return the mean over rows and its standard error."""
    return {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1) / np.sqrt(len(values)))}


def imputation(schema: tables.Schema, data: Data, args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Return the errors of cells that are filled in, by a program that was trained without a share of the cells."""
    gapped = without_cells(data, args.missing, seed)
    vae, _ = trained(schema, gapped, args, seed, folder)
    truth, x = data.test.table, gapped.test.table
    gaps = x.isnan()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedImputation)
        found = impute(vae, gapped.test, particles=args.particles, seed=seed)
    return {
        "VAE": errors(schema, truth, gaps, found.x.double(), found.standard_deviation.double()),
        "means or most frequent levels": errors(schema, truth, gaps, simple(schema, gapped.train.table, x)),
        "untrusted": float(found.untrusted.double().mean()),
    }


def draw(vae: VAE, schema: tables.Schema, data: Data, name: str, folder: Path, seed: int) -> None:
    """Write the pictures of a run."""
    torch.manual_seed(seed)
    with torch.no_grad():
        samples = vae.model(n=len(data.train)).double().numpy()
    rows = data.train.table.numpy()
    save_figure(folder / f"{name}-seed{seed}-marginals.png", marginals(schema, rows, samples))
    few = slice(0, 1000)
    save_figure(folder / f"{name}-seed{seed}-pairs.png", pairs(schema, rows[few], samples[few], PAIRS[name]))


def line(result: dict[str, Any]) -> str:
    """Return one run as a line."""
    ours, filled = result["log_px"]["VAE"], result["imputation"]["VAE"]
    return (
        f"log p(x) {estimate(ours['mean'], ours['standard_error'])} nats per row; imputation "
        f"{', '.join(f'{key} {value:.3f}' for key, value in filled.items() if key != 'columns')}; "
        f"{result['training_seconds']:.0f} seconds of training"
    )


def report(out: Path, runs: dict[Path, dict[str, Any]]) -> str:
    """Write the numbers and pictures of all runs, and return their table."""
    summary: dict[str, Any] = {}
    for name in FRAMES:
        own = [result for result in runs.values() if result["table"] == name]
        if own:
            summary[name] = over_seeds(own)
            first = min(result["seed"] for result in own)
            for picture in ("marginals", "pairs"):
                drawn = out / "tables" / f"{name}-seed{first}-{picture}.png"
                (out / f"tables_{name}_{picture}.png").write_bytes(drawn.read_bytes())
    content = {"versions": provenance(), "unit": "nats per row", "summary": summary, "runs": [*runs.values()]}
    write_json(out / "tables.json", content)
    text = "\n".join(line for name in summary for line in lines(name, summary[name]))
    (out / "tables.txt").write_text(text + "\n", encoding="utf-8")
    return text


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the seeds of what was measured on one table."""
    densities, filled = runs[0]["log_px"], runs[0]["imputation"]
    scores = ("mean_numbers", "mean_levels")
    return {
        "seeds": [run["seed"] for run in runs],
        "test_rows": runs[0]["test_rows"],
        "log_px": {name: mean([run["log_px"][name]["mean"] for run in runs]) for name in densities},
        "vae_is_above_by": {
            name: mean([run["log_px"][name]["vae_is_above_by"]["mean"] for run in runs])
            for name in densities
            if name != "VAE"
        },
        "imputation": {
            name: {key: mean([run["imputation"][name][key] for run in runs]) for key in scores if key in filled[name]}
            for name in filled
            if name != "untrusted"
        },
    }


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """Return the means of one table as lines."""
    seeds = f"{len(found['seeds'])} seeds, {found['test_rows']} test rows"
    words = {"mean_numbers": "error of numbers (standard deviations)", "mean_levels": "share of wrong levels"}
    return [
        f"{name} ({seeds})",
        *(f"  log p(x), {model}: {shown(value)}" for model, value in found["log_px"].items()),
        *(
            f"  {words[key]}, {model}: {shown(value)}"
            for model, scores in found["imputation"].items()
            for key, value in scores.items()
        ),
    ]


def shown(value: dict[str, Any]) -> str:
    """Return a mean over seeds with its standard error."""
    return (
        f"{value['mean']:.3f}" if value["standard_error"] is None else estimate(value["mean"], value["standard_error"])
    )


if __name__ == "__main__":
    sys.exit(main())
