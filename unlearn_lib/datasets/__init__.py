"""One module per experiment; each returns its splits as `datasets.Dataset`."""
