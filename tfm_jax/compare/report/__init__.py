"""A comparison as a table for the terminal and as a folder of JSON, CSV and HTML."""
