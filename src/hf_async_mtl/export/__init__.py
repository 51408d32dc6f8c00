"""A trained bundle for other engines: one graph with an encoder and all heads."""
