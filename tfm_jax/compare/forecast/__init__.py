"""Forecasts step times of programs compiled for TPUs that are not here."""
