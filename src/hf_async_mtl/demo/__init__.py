"""The generated task set of ``hf-async-mtl demo``."""
