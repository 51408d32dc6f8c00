"""Export a multi-task model for other engines: one graph with the encoder and all heads."""
