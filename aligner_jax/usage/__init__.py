"""Help and flags of the commands, read from their source: importing a command takes seconds, for JAX comes with it."""
