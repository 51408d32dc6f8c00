"""How the losses of the tasks become one update of what they share."""
