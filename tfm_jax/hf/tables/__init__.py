"""One table per architecture: the paths of our parameters beside the names of theirs."""
