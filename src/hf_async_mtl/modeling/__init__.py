"""The model: its configuration, losses, heads, packing. Goes to the Hub as it stands; imports nothing else of ours."""
