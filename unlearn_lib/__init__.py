"""Helpers that train, unlearn and evaluate for the notebooks of the companion.

Rooms, each using those above it only: `profiles`, `assets`, `models`, `datasets`, `batches`,
`losses`, `methods`, `training`, `generation` and `scoring`, `metrics`, `classifiers`, `runs`,
`experiments`, then `tables`, `figures` and `results`.
"""

import logging
import warnings

__version__ = "0.1.0"

# Notices of other libraries that say nothing to a reader of a notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
