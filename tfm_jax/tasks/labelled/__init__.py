"""What tasks on files of labelled examples share."""
