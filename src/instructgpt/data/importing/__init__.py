"""Other people's data sets into our records, and our records out again: `data import`."""
