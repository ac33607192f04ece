"""The plan: which TPUs to rent for a run, and how to lay it out on them."""
