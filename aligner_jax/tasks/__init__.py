"""Training tasks: each objective with its feed, its held-out evaluation and its report, and the loop that runs them."""
