"""The Trainer, its arguments and its collaborators."""
