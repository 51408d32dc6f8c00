"""Learning from recorded logits: teachers, snapshots, losses."""
