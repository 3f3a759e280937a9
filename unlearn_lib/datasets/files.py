"""Reading the files of data sets: CSV, JSON lines, and what `datasets` opens; no bad file passes.

Whatever is wrong with a file (missing, truncated, another form, a column gone) ends in a
`CompanionError` that names it.
"""

import csv
import json
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, disable_progress_bars

from unlearn_lib.assets import cache_folder, require_space
from unlearn_lib.errors import CompanionError, nearest

disable_progress_bars()

EMBEDDED = Path(__file__).parent / "embedded"


def check_columns(place: Path | str, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise a CompanionError that names the first column missing from a table."""
    for name in needed:
        if name not in columns:
            raise CompanionError(f"{place} has no column '{name}'{nearest(name, columns)}.")


def read_csv(path: Path, needed: Sequence[str], skip: int = 0) -> pd.DataFrame:
    """Read a UTF-8 CSV with the columns that are needed.

    Raises:
        CompanionError: unreadable, empty, or a column missing (names the nearest it has).
    """
    try:
        frame = pd.read_csv(path, skiprows=skip, encoding="utf-8")
    except FileNotFoundError as e:
        raise CompanionError(f"There is no file {path}; put it there.") from e
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, csv.Error) as e:
        raise CompanionError(f"{path} is not a readable UTF-8 CSV file ({e}).") from e
    check_columns(path, list(frame.columns), needed)
    return frame


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a small file of JSON lines.

    Raises:
        CompanionError: a line that is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        reason = f"it may be truncated or altered ({error})"
        raise CompanionError(f"{path} cannot be read, {reason}; fetch it again.") from error


def read_table(path: Path) -> Dataset:
    """Read one file with `datasets`, which knows the hub's formats and their compression.

    Raises:
        CompanionError: truncated, altered or of another form; or no room for the cache.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    packed = path.suffix in (".xz", ".gz")
    suffix = path.with_suffix("").suffix[1:] if packed else path.suffix[1:]
    kind = {"jsonl": "json"}.get(suffix, suffix)
    folder = cache_folder() / "datasets"
    require_space(folder, needed=2 * path.stat().st_size)
    try:
        return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(folder))
    except (DatasetGenerationError, OSError, ValueError, EOFError, LZMAError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise CompanionError(
            f"{path} cannot be read, it may be truncated or altered ({reason}); fetch it again."
        ) from error
