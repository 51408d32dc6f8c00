"""Balance the tasks: combine their losses or gradients into one update of the shared parameters."""
