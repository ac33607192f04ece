"""Forecasts step times of programs compiled for devices that are not here."""
