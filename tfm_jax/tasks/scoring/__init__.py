"""Scores of predictions, one file per form, and their bootstrap intervals. The door is `tfm_jax.tasks.scores`."""
