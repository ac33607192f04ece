"""Pre-training objectives: token ids to training arrays, numpy only, vectorised over rows."""
