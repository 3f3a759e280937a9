"""The table of bad inputs: profiles, the command line, notebooks, books and question files."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unlearn_lib.__main__ import main

REFUSED, RIGHT = "refused", "right"
Act = Callable[[], object]


class Case(NamedTuple):
    """An input: the entry point that it is for, what it is, and the kind of answer expected.

    `prepare` makes the input in an empty folder, and returns what is then to be done with it.
    """

    entry: str
    name: str
    prepare: Callable[[Path], Act]
    expected: str = REFUSED


def text_of(value: Any) -> str:
    """A value as it would stand in a YAML file, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


# --- profiles ------------------------------------------------------------------------------------

START = "name: mine\nextends: smoke\n"


def checked(content: str | bytes, folder: Path) -> Act:
    """Check a profile of this content."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "profiles" / "mine.yaml").write_bytes(data)
    return functools.partial(main, ["check", "--profile", "mine"])


def profile(name: str, content: str | bytes, expected: str = REFUSED) -> Case:
    """The case of a profile of this content."""
    return Case("profiles", name, functools.partial(checked, content), expected)


def setting(place: str, value: Any, expected: str = REFUSED) -> Case:
    """The case of profile smoke with one value at a place, such as `tasks/book/data`."""
    tree = value
    for key in reversed(place.split("/")):
        tree = {key.replace("~", "/"): tree}
    return profile(f"{place}: {str(value)[:40]}", f"{START}{yaml.safe_dump(tree)}", expected)


NO_YAML: dict[str, str | bytes] = {
    "empty": "",
    "spaces": " \n\n  \n",
    "a comment": "# nothing\n",
    "null": "null",
    "a list": "- a\n- b\n",
    "a word": "smoke",
    "a number": "42",
    "an open bracket": "name: [mine",
    "an open quote": 'name: "mine\n',
    "a tab": "name: mine\n\textends: smoke\n",
    "deep": "[" * 5000,
    "deep mappings": "{a: " * 3000,
    "zeros": bytes(4096),
    "bytes": bytes(range(256)) * 16,
    "UTF-16": START.encode("utf-16"),
    "cp1252": (START + "methods: {ga: {label: caf\xe9}}\n").encode("cp1252"),
    "cut in a letter": (START + "methods: {ga: {label: caf\xe9").encode()[:-1],
    "two documents": "name: mine\n---\nextends: smoke\n",
    "an unknown alias": START + "seeds: *nobody\n",
    "a loop": START + "seeds: &a [*a]\n",
    "a loop of mappings": START + "tasks: &a {harm: *a}\n",
    "code": START + 'seeds: !!python/object/apply:os.system ["touch touched"]\n',
    "an unknown tag": START + "seeds: !mine [1]\n",
    "a merge of nothing": START + "<<: 3\n",
    "a key twice": START + "seeds: [1]\nseeds: [2]\n",
    "a task twice": START + "tasks:\n  book: null\n  book: {}\n",
    "a list for a key": START + "? [a, b]\n: c\n",
    "a mapping for a key": START + "? {a: b}\n: c\n",
    "many keys": START + "".join(f"key{i}: {i}\n" for i in range(50_000)),
    "a long line": START + f"only: [{'harm' * 100_000}]\n",
    "a bomb": START + "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
}  # fmt: skip
PROFILES = [profile(f"YAML: {name}", content) for name, content in NO_YAML.items()]
PROFILES += [profile("YAML: with a mark", START.encode("utf-8-sig"), RIGHT)]

INPUTS: dict[str, list[Case]] = {"profiles": PROFILES}
