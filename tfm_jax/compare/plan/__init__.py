"""The plan: which TPUs or GPUs to rent for a run, and how to lay it out on them."""
