"""What a run shows of itself: tables, plots and a model card, from the plain dict of `convergence.json`."""

from hf_async_mtl.report.model_card import RunCard, installed_versions
from hf_async_mtl.report.plots import draw, plot_curves, plot_retention
from hf_async_mtl.report.tables import final_table, progress_table, render

__all__ = [
    "RunCard",
    "draw",
    "final_table",
    "installed_versions",
    "plot_curves",
    "plot_retention",
    "progress_table",
    "render",
]
