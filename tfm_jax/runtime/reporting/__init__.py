"""What a run shows: log lines, metrics, tables and pages with curves."""
