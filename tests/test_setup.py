"""The set-up's files agree: ranges, lock, platforms, conda's environment, make's targets."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import OFFLINE
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))[
    "package"
]
LIBRARY = next(package for package in LOCKED if package["name"] == "unlearning-companion")
DIRECT = {entry["name"] for entry in LIBRARY["dependencies"]} | {
    entry["name"] for group in LIBRARY["dev-dependencies"].values() for entry in group
}
ASSETS = {Requirement(entry).name for entry in PROJECT["dependency-groups"]["assets"]}
SOURCE_ONLY = {"rouge-score"}  # pure Python, published without a wheel
GLIBC = ["manylinux1", *(f"manylinux_2_{minor}" for minor in range(17, 29))]
PLATFORMS = {
    "Linux x86-64": [f"{name}_x86_64" for name in GLIBC],
    "Linux arm64": [f"{name}_aarch64" for name in GLIBC],
    "macOS arm64": list(mac_platforms((14, 0), "arm64")),
}


def test_lock_is_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("uv")
    command = f"{sys.executable} -m uv lock --check --offline --cache-dir".split()
    done = subprocess.run(
        [*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platforms", PLATFORMS.values(), ids=PLATFORMS)
def test_every_dependency_has_a_wheel(platforms: list[str]) -> None:
    tags = {*cpython_tags((3, 11), platforms=platforms)}
    tags |= {*compatible_tags((3, 11), "cp311", platforms)}
    suitable = {
        package["name"]
        for package in LOCKED
        for wheel in package.get("wheels", [])
        if parse_wheel_filename(wheel["url"].rsplit("/", 1)[1])[3] & tags
    }
    assert {"torch", "bitsandbytes"} <= DIRECT
    assert DIRECT - suitable == SOURCE_ONLY


def test_installed_packages_are_the_locked_ones() -> None:
    versions = {package["name"]: package.get("version") for package in LOCKED}
    installed = {name: Version(metadata.version(name)).public for name in DIRECT}
    assert installed == {name: versions[name] for name in DIRECT}


def test_assets_are_hashed_and_bring_no_dependencies() -> None:
    packages = [package for package in LOCKED if package["name"] in ASSETS]
    assert len(packages) == 4
    for package in packages:
        assert "dependencies" not in package
        assert all(wheel["hash"].startswith("sha256:") for wheel in package["wheels"])


def test_every_locked_file_has_a_hash() -> None:
    for package in LOCKED:
        files = [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
        assert "registry" not in package["source"] or files
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]


def test_no_file_names_a_private_index() -> None:
    lock = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([^/\"]+)", lock)) == {"pypi.org", "files.pythonhosted.org"}
    for name in ("pyproject.toml", "environment.yml", "Makefile", ".ci/run"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_conda_environment_is_the_one_that_make_fills() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = Requirement(environment["dependencies"][0].replace("=", "==", 1))
    supported = Requirement(f"python{PROJECT['project']['requires-python']}")
    assert next(iter(python.specifier)).version in supported.specifier
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(filter {environment['name']},$(CONDA_DEFAULT_ENV))" in makefile


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    targets = {line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert phony and set(phony[1].split()) == targets


def test_a_path_of_a_book_may_hold_any_sign(tmp_path: Path) -> None:
    (tmp_path / ".ready").write_text(f"{ROOT}\n")
    book = tmp_path / 'a $HOME "b" `c` d.txt'
    book.write_text("A word.")
    words = [
        f"BOOK={book}",
        "PROFILE=smoke",
        f"READY={tmp_path / '.ready'}",
        f"PY={sys.executable}",
    ]
    done = subprocess.run(
        ["make", "-s", "status", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "profile smoke-book-a-home" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "JOBS=0"],
        ["reproduce", "JOBS=two"],
        ["reproduce", "JOBS=$(shell touch touched)"],
        ["status", "PROFILE=smoke$(shell touch touched)"],
        ["status", 'PROFILE=smoke"; touch touched; "'],
        ["status", "SEEDS=`touch touched`"],
        ["clean", 'PROFILE="; touch touched; "'],
    ],
)
def test_no_variable_of_make_reaches_the_shell(words: list[str], tmp_path: Path) -> None:
    (tmp_path / ".ready").write_text(f"{tmp_path}\n")
    for file in ("Makefile", "uv.lock"):
        shutil.copy(ROOT / file, tmp_path)
    ready = [f"READY={tmp_path / '.ready'}", f"PY={sys.executable}"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{OFFLINE}"}
    done = subprocess.run(
        ["make", *words, *ready],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode and done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "touched").exists()


def test_make_clean_never_removes_reference_results(tmp_path: Path) -> None:
    for file in ("Makefile", "uv.lock"):
        shutil.copy(ROOT / file, tmp_path)
    for name in ("reference", "mine", "smoke"):
        (tmp_path / "results" / name).mkdir(parents=True)

    def left(target: str, profile: str) -> set[str]:
        subprocess.run(["make", target, f"PROFILE={profile}"], cwd=tmp_path, capture_output=True)
        return {path.name for path in (tmp_path / "results").iterdir()}

    for refused in ("reference", "", "..", "mine/.."):
        assert left("clean", refused) == {"reference", "mine", "smoke"}
    assert left("clean", "mine") == {"reference", "smoke"}
    assert left("distclean", "smoke") == {"reference"}
