"""Tasks beside pre-training: what is learned from labelled data, one file a task."""
