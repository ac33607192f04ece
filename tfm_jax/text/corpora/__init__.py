"""Documents from the sources that `data.source` names."""
