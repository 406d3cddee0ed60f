"""Import of other data sets and export of our records: `data import`."""
