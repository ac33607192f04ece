"""Sharding strategies side by side: measured on the devices at hand, forecast for those that are not there."""
