"""Optional measurements of a run."""
