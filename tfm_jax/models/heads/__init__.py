"""What is predicted from the last hidden states: one file per kind of head, and the table of all of them."""
