"""Sharding strategies and meshes: the only code that names mesh axes."""
