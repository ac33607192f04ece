"""Reads compiled programs: operations, collectives, memory, and the analytic minimum they are compared with."""
