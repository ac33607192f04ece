"""One file per family, each with its entry of `models.families.table.FAMILIES`."""
