"""Config, state, step, optimizer, checkpoints, run directory, tracking and the loop."""
