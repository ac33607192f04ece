"""Labelled examples, read from files: tables and JSON lines, CoNLL columns, and questions in SQuAD's JSON."""
