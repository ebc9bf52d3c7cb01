"""Training tasks: every objective with its feed, held-out evaluation and report, and the training loop."""
