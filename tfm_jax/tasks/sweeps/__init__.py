"""The parts of `tasks.sweep`: what is tried, the runs and their processes, their results, and the page."""
