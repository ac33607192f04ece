"""Compares sharding strategies: measured on the devices at hand, or forecast for TPUs that are not here."""
