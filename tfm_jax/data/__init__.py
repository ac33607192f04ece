"""Sources to token file to plan of rows to batch(step)."""
