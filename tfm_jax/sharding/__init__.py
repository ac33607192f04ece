"""Everything that knows a mesh axis by name."""
