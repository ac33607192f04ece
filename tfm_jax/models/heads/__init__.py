"""Prediction heads: one file per kind, and the table of all of them."""
