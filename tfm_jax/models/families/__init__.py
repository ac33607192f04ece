"""One file per family, each with its row of `models.families.table.FAMILIES`."""
