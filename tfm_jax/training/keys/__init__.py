"""The keys of the configuration: their settings, types, allowed values, earlier names and help."""
