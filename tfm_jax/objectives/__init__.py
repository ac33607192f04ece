"""Training objectives: from token ids to the arrays of a batch, in numpy, vectorised over rows."""
