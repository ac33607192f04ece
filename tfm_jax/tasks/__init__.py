"""Tasks that learn from labelled data, one file per task. Pre-training is in `training.pretraining`."""
