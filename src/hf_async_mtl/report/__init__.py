"""Show a run: tables, plots, the model card and an HTML page."""
