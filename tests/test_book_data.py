"""The texts of experiment 2: three parts of a book that never meet, and prose that is no book."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_readers import NUMBERS, novel, prose

from unlearn_lib.datasets import book as data
from unlearn_lib.datasets.harmful import normal_questions
from unlearn_lib.datasets.prose import load_prose
from unlearn_lib.datasets.readers import read_book
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import BookData

BOOK = read_book(data.SAGA)
State = dict[str, tuple[int, bytes]]


def settings(**changed: Any) -> BookData:
    return BookData.model_validate({"retain": "embedded"} | changed)


def counts(forget: int | None, kept: int | None, control: int | None) -> dict[str, int | None]:
    return {"forget_chapters": forget, "kept_chapters": kept, "control_chapters": control}


def state(folder: Path) -> State:
    """Every file below a folder: when it was changed, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for books, also the working one and that of the cache: no error changes it."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_text(novel(), encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("Chapter One\n\nA line.\n\nChapter Two\n\nAnother.\n")
    (tmp_path / "picture.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "prose.txt").write_text(book_of(load_prose("embedded").texts[:12]))
    before = state(tmp_path)
    yield tmp_path
    assert state(tmp_path) == before


def book_of(texts: tuple[str, ...]) -> str:
    """Four chapters that hold the texts."""
    share = len(texts) // 4
    groups = [texts[start : start + share] for start in range(0, 4 * share, share)]
    chapters = zip(NUMBERS, groups, strict=True)
    return "\n\n\n".join(f"Chapter {n}\n\n" + "\n\n".join(group) for n, group in chapters)


def refusal(chosen: BookData) -> str:
    with pytest.raises(CompanionError) as caught:
        data.load(chosen)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def check_parts(splits: data.BookSplits) -> None:
    """No chapter in two parts, every part in the book's order, every chapter the book's."""
    order = {chapter.text: place for place, chapter in enumerate(splits.book.chapters)}
    places = {part: [order[each.text] for each in splits.part(part)] for part in data.PARTS}
    for part, found in places.items():
        assert found and found == sorted(found), part
        assert all(
            splits.book.chapters[i] == c for i, c in zip(found, splits.part(part), strict=True)
        )
    together = [place for found in places.values() for place in found]
    assert len(together) == len(set(together))
    assert not set(splits.retain) & set(splits.normal)


def test_the_saga_is_read_dealt_and_is_not_in_the_prose() -> None:
    splits = data.load(settings())
    check_parts(splits)
    assert [len(splits.part(part)) for part in data.PARTS] == [8, 8, 8]
    assert splits.overlap.passages == 0 and splits.overlap.of == 48
    assert (len(splits.normal), len(splits.retain)) == (12, 36)
    assert splits.questions == () and set(splits.sha256) == {"book", "embedded"}
    assert splits.sha256["book"] == splits.book.sha256
    assert data.load(settings()) == splits


@hypothesis_settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    forget=st.integers(1, 8),
    kept=st.integers(1, 8),
    control=st.none() | st.integers(1, 8),
)
def test_parts_never_meet(seed: int, forget: int, kept: int, control: int | None) -> None:
    chosen = settings(split_seed=seed, **counts(forget, kept, control))
    dealt = data._deal(BOOK, chosen, data.SAGA)
    rest = len(BOOK.chapters) - forget - kept
    assert [len(part) for part in dealt] == [forget, kept, control or rest]
    place = {id(chapter): i for i, chapter in enumerate(BOOK.chapters)}
    places = [[place[id(chapter)] for chapter in part] for part in dealt]
    assert all(part == sorted(part) for part in places)
    assert len({i for part in places for i in part}) == sum(map(len, places))


def test_the_split_seed_decides() -> None:
    first, again, other = (data.load(settings(split_seed=seed)) for seed in (3, 3, 4))
    assert first == again
    for name in (*data.PARTS, "normal", "retain"):
        assert getattr(first, name) != getattr(other, name), name
    assert first.sha256 == other.sha256


@pytest.mark.parametrize(
    "asked, expected",
    [
        (counts(None, None, None), [1, 1, 2]),
        (counts(2, None, None), [2, 1, 1]),
        (counts(None, 2, None), [1, 2, 1]),
        (counts(None, None, 1), [1, 1, 1]),
        (counts(2, 1, 1), [2, 1, 1]),
    ],
)
def test_counts_that_are_not_given_are_thirds_and_the_rest(
    asked: dict[str, int | None], expected: list[int], nothing_written: Path
) -> None:
    splits = data.load(settings(file=nothing_written / "novel.txt", **asked))
    check_parts(splits)
    assert [len(splits.part(part)) for part in data.PARTS] == expected


@pytest.mark.parametrize("asked", [counts(2, 2, 1), counts(4, None, None), counts(1, 1, 9)])
def test_too_few_chapters_are_named(asked: dict[str, int | None], nothing_written: Path) -> None:
    message = refusal(settings(file=nothing_written / "novel.txt", **asked))
    assert message.startswith("novel.txt has 4 chapters") and "book.data" in message
    for number in asked.values():
        assert number is None or f"{number} " in message


def test_prose_that_contains_the_book_is_refused_and_shown(nothing_written: Path) -> None:
    message = refusal(settings(file=nothing_written / "prose.txt"))
    assert "retain set contains the book: 12 of 48 passages" in message
    example = message.split("«")[1].split("»")[0]
    assert len(example.split()) == 13
    words = " ".join(" ".join(load_prose("embedded").texts).lower().split())
    assert example.split()[0] in words and "100%" in message


def test_held_out_prose_must_leave_some_to_train_on(nothing_written: Path) -> None:
    for most in (48, 4000):
        message = refusal(settings(normal_prompts=most))
        assert "has 48 texts" in message and f"normal_prompts {most}" in message
    splits = data.load(settings(normal_prompts=47))
    assert (len(splits.normal), len(splits.retain)) == (47, 1)


def test_limits_take_the_first_texts_of_the_same_split() -> None:
    whole, few = data.load(settings(normal_prompts=8)), settings(normal_prompts=8, retain_rows=5)
    assert data.load(few).retain == whole.retain[:5]
    assert data.load(few).normal == whole.normal


@pytest.mark.parametrize("name", ["embedded", "truthful_qa"])
def test_questions_are_all_there_in_a_seeded_order(name: Any) -> None:
    frame, sha256 = normal_questions(name)
    first, again, other = (
        data.load(settings(questions=name, split_seed=seed)) for seed in (0, 0, 1)
    )
    assert first.questions == again.questions != other.questions
    assert sorted(first.questions) == sorted(other.questions) == sorted(frame["question"])
    assert first.questions != tuple(frame["question"])
    assert first.sha256[name] == sha256


@pytest.mark.parametrize(
    "name, says",
    [
        ("nowhere.txt", "There is no file"),
        ("empty.txt", "is empty"),
        ("short.txt", "too short to be split"),
        ("picture.txt", "binary file"),
        ("cache", "is a folder"),
    ],
)
def test_a_book_that_cannot_be_read_is_named(name: str, says: str, nothing_written: Path) -> None:
    message = refusal(settings(file=nothing_written / name))
    assert says in message and name in message


def test_the_reader_s_own_book_is_only_read(nothing_written: Path) -> None:
    splits = data.load(settings(file=nothing_written / "novel.txt"))
    check_parts(splits)
    assert splits.book.title == "The Keeper" and splits.book.units == "chapters"


def test_a_book_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "novel.txt").write_text(novel(), encoding="utf-8")
    assert data.load(settings(file="~/novel.txt")).book.title == "The Keeper"


def test_a_digest_follows_texts_and_their_order() -> None:
    first, second = prose(40), prose(40, seed=1)
    assert data.digest(first) == data.digest(list(first)) != data.digest(second)
    assert data.digest(["a", "b"]) != data.digest(["b", "a"]) != data.digest(["ab"])
