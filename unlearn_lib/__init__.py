"""Helpers that train, unlearn and evaluate for the notebooks of the companion.

Rooms, each using those above it only: `profiles`, `assets`, `models`, `datasets`, `batches`,
`losses`, `methods`, `training`, `generation` and `scoring`, `metrics`, `classifiers`, `runs`,
`experiments`, then `figures` and `tables`.
"""

__version__ = "0.1.0"
