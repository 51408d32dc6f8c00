"""Training: our arguments, callbacks and the thin Trainer that joins the rooms."""
