"""README says what is so: its verdicts are the committed ones, its links and commands exist."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = ROOT / "figures" / "laptop" / "verdicts_headline.csv"


def headline() -> list[dict[str, str]]:
    with FIRST.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("row", headline(), ids=lambda row: row["Claim"][:40])
def test_the_short_table_of_verdicts_is_the_committed_one(row: dict[str, str]) -> None:
    paper = row["Paper"].partition(" et al")[0]
    assert f"| {row['Claim']} | {paper} | {row['Reported']} | {row['Verdict']} |" in README


def test_the_short_table_has_no_claim_more() -> None:
    table = README.partition("| claim | paper | reported | here |\n")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == len(headline()) + 1


def test_every_picture_and_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 5
    assert [link for link in local if not (ROOT / link).is_file()] == []


def test_every_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"(?:`|^)(?:[A-Z]+=\S+ )*make ([a-z]+)", README, re.MULTILINE))
    assert {"reproduce", "test", "figures", "report", "verify"} <= asked <= targets


def test_no_picture_shows_harmful_text() -> None:
    """Pictures are drawn from numbers alone: those that the figures' code draws."""
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures and all(picture.startswith("figures/laptop/") for picture in pictures)
