"""Optional measurements of a run, off by default."""
