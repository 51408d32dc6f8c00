"""Search for hyperparameters with Optuna: one trainer per trial, scored by the ``eval_average`` of its final weights.

    pip install optuna
    python scripts/examples/optuna_search.py CONFIG.yaml --trials 20 --output-dir runs/search

Each trial is an ordinary run in ``<output-dir>/trial-<number>``. Change `suggest` to search over other keys.
"""

import argparse
from pathlib import Path

import optuna

from hf_async_mtl import load_run


def suggest(trial: optuna.Trial) -> dict[str, object]:
    """Return the values of a trial, named as for ``--set``."""
    return {
        "training.learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "convergence.patience": trial.suggest_int("patience", 2, 6),
        "balancing.method": trial.suggest_categorical("method", ["sum", "uw"]),
    }


def score(trial: optuna.Trial, config_file: Path, output_dir: Path) -> float:
    """Train with the values of a trial and return the mean of the tasks' monitored metrics."""
    overrides = [f"{key}={value}" for key, value in suggest(trial).items()]
    trainer = load_run(config_file, overrides, output_dir / f"trial-{trial.number}").trainer()
    trainer.train()
    return trainer.report()["final"]["average"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/search"))
    args = parser.parse_args()
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: score(trial, args.config, args.output_dir), n_trials=args.trials)
    print(f"Best eval_average: {study.best_value:.4f} with {study.best_params}")
