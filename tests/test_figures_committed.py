"""The committed figures and tables are what `make figures` gives on a fresh clone, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_lib import profiles, results
from unlearn_lib.figures import style
from unlearn_lib.profiles import ROOT, load_profile

COMMITTED = ROOT / "figures" / "laptop"
ONE_FIGURE = """
import sys
from pathlib import Path
from unlearn_lib.figures import harmful_rate_figure, save_figure
from unlearn_lib.metrics import tidy

frame = tidy.read(Path("results/reference/laptop/metrics.csv"))
save_figure(harmful_rate_figure(frame, "laptop", {}), Path(sys.argv[1]), "figure", {}, frame)
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with the reference results and no others."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    for module in (profiles, results):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def test_the_committed_figures_and_tables_are_drawn_again_byte_for_byte(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PNG and PDF are left out: they would take twice the time, and are the same picture."""
    monkeypatch.setattr(style, "UNDATED", {"svg": style.UNDATED["svg"]})
    drawn = results.draw(load_profile("laptop"))
    assert "Drawing from reference results" in capsys.readouterr().out
    names = {path.name for path in COMMITTED.iterdir() if path.suffix not in (".png", ".pdf")}
    assert {path.name for path in drawn} == names, "run `make figures` and commit what it draws"
    for path in drawn:
        assert path.is_relative_to(fresh)
        same = path.read_bytes() == (COMMITTED / path.name).read_bytes()
        assert same, f"{path.name} is drawn otherwise: run `make figures`, look, commit"


def test_every_format_of_a_committed_figure_is_there() -> None:
    for path in COMMITTED.glob("*.svg"):
        assert all(path.with_suffix(ending).is_file() for ending in (".png", ".pdf", ".json"))


def test_another_processor_and_another_hash_seed_draw_the_same_bytes(tmp_path: Path) -> None:
    """OpenBLAS takes other kernels when told another processor: other last bits in a layout."""
    for name, processor in (("first", "Haswell"), ("second", "Prescott")):
        settings = {"OPENBLAS_CORETYPE": processor, "PYTHONHASHSEED": str(len(name))}
        command = [sys.executable, "-c", ONE_FIGURE, str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [path.suffix for path in first] == [".json", ".pdf", ".png", ".svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
