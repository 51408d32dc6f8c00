"""The model: its configuration, losses, heads, packing. Goes to the Hub as it stands and imports nothing else of ours."""
