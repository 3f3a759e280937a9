"""Fictitious authors: facts that agree, right answers that are right, wrong ones that are wrong."""

import csv
import json
import re
from collections import defaultdict
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from unlearn_lib.datasets.authors import ATTRIBUTES, MOST_WRONG, POOLS, Author, write_authors
from unlearn_lib.datasets.files import EMBEDDED
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError

MOST = 2520
TITLES = ("first_book", "second_book")
MANY = write_authors(200, seed=0, questions=len(ATTRIBUTES))
REAL_AUTHORS = """
Chinua Achebe; Douglas Adams; Chimamanda Ngozi Adichie; Ama Ata Aidoo; Anna Akhmatova; Louisa May
Alcott; Isabel Allende; Jorge Amado; Martin Amis; Hans Christian Andersen; Maya Angelou; Isaac
Asimov; Margaret Atwood; Jane Austen; Isaac Babel; James Baldwin; Honoré de Balzac; Charles
Baudelaire; Simone de Beauvoir; Samuel Beckett; Saul Bellow; William Blake; Roberto Bolaño; Jorge
Luis Borges; Ray Bradbury; Bertolt Brecht; Charlotte Brontë; Emily Brontë; Mikhail Bulgakov;
Octavia Butler; Italo Calvino; Albert Camus; Truman Capote; Peter Carey; Lewis Carroll; Raymond
Carver; Willa Cather; Miguel de Cervantes; Raymond Chandler; Geoffrey Chaucer; Anton Chekhov;
Agatha Christie; Arthur C. Clarke; Paulo Coelho; J. M. Coetzee; Joseph Conrad; Julio Cortázar;
Roald Dahl; Dante Alighieri; Rubén Darío; Daniel Defoe; Don DeLillo; Anita Desai; Philip K. Dick;
Charles Dickens; Emily Dickinson; Joan Didion; Fyodor Dostoevsky; Arthur Conan Doyle; Theodore
Dreiser; Daphne du Maurier; Alexandre Dumas; Marguerite Duras; Umberto Eco; George Eliot; T. S.
Eliot; Ralph Ellison; Buchi Emecheta; Annie Ernaux; Nuruddin Farah; William Faulkner; Elena
Ferrante; F. Scott Fitzgerald; Gustave Flaubert; E. M. Forster; Robert Frost; Carlos Fuentes; Neil
Gaiman; Gabriel García Márquez; Amitav Ghosh; André Gide; Johann Wolfgang von Goethe; Nikolai
Gogol; William Golding; Nadine Gordimer; Maxim Gorky; Günter Grass; Graham Greene; Abdulrazak
Gurnah; Knut Hamsun; Thomas Hardy; Seamus Heaney; Joseph Heller; Ernest Hemingway; Hermann Hesse;
Patricia Highsmith; Khaled Hosseini; Victor Hugo; Zora Neale Hurston; Aldous Huxley; Henrik Ibsen;
Kazuo Ishiguro; Elfriede Jelinek; James Joyce; Ismail Kadare; Franz Kafka; Han Kang; Yasunari
Kawabata; Nikos Kazantzakis; John Keats; Stephen King; Rudyard Kipling; Milan Kundera; Jhumpa
Lahiri; Selma Lagerlöf; D. H. Lawrence; Halldór Laxness; Ursula K. Le Guin; Harper Lee; Stanisław
Lem; Doris Lessing; C. S. Lewis; Astrid Lindgren; Clarice Lispector; Jack London; Naguib Mahfouz;
Thomas Mann; Hilary Mantel; Herman Melville; Czesław Miłosz; Yukio Mishima; Gabriela Mistral;
Patrick Modiano; Toni Morrison; Alice Munro; Haruki Murakami; Iris Murdoch; Vladimir Nabokov;
V. S. Naipaul; Pablo Neruda; Ben Okri; Michael Ondaatje; George Orwell; Amos Oz; Orhan Pamuk;
Boris Pasternak; Octavio Paz; Sylvia Plath; Edgar Allan Poe; Marcel Proust; Alexander Pushkin;
Rainer Maria Rilke; Philip Roth; J. K. Rowling; Arundhati Roy; Juan Rulfo; Salman Rushdie; José
Saramago; Leopold Sedar Senghor; William Shakespeare; Mary Shelley; Isaac Bashevis Singer; Zadie
Smith; Aleksandr Solzhenitsyn; Wole Soyinka; John Steinbeck; Robert Louis Stevenson; Wisława
Szymborska; Rabindranath Tagore; Junichiro Tanizaki; Ngũgĩ wa Thiong'o; Olga Tokarczuk; J. R. R.
Tolkien; Leo Tolstoy; Ivan Turgenev; Mark Twain; Mario Vargas Llosa; Jules Verne; Voltaire; Kurt
Vonnegut; Derek Walcott; Alice Walker; H. G. Wells; Edith Wharton; Patrick White; Walt Whitman;
Oscar Wilde; Tennessee Williams; Virginia Woolf; Richard Wright; W. B. Yeats; Banana Yoshimoto;
Marguerite Yourcenar; Émile Zola; Stefan Zweig
"""


def rows(authors: tuple[Author, ...] = MANY) -> list[tuple[Author, str, Question]]:
    """Every question with its author and the attribute that it asks for."""
    return [(a, *pair) for a in authors for pair in zip(ATTRIBUTES, a.questions)]


def texts_of(question: Question) -> list[str]:
    return [question.question, question.answer, question.paraphrase, *question.perturbed_answer]


def bare(text: str, author: Author, value: str) -> str:
    """A text with its name, value and article taken out, so that phrasings can be compared."""
    text = text.replace(author.name, "Nnn").replace(author.name.split()[-1], "Nnn")
    return re.sub(r"\b([Aa])n (?=vvv)", r"\1 ", text.replace(value, "vvv"))


def holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def real_people() -> set[str]:
    """Well-known authors, and whoever the embedded sets of questions name."""
    listed = {" ".join(name.split()) for name in REAL_AUTHORS.split(";")}
    for path in EMBEDDED.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line)
            listed |= {row[key] for key in ("person", "subject") if key in row}
            if path.stem == "real_authors":
                listed |= {row["answer"], *row["perturbed_answer"]}
    return listed


# --- facts -----------------------------------------------------------------------------------


def check_facts(author: Author) -> None:
    facts = author.attributes
    assert tuple(facts) == ATTRIBUTES
    assert len(set(facts.values())) == len(ATTRIBUTES), "one value serves two attributes"
    born, debut, award = (
        int(facts[key]) for key in ("birth_year", "first_book_year", "award_year")
    )
    assert born >= 1930 and born + 26 <= debut <= born + 42 and debut < award <= 2020
    assert not set(facts["mentor"].split()) & set(author.name.split())


def test_no_two_facts_of_an_author_contradict() -> None:
    for author in MANY:
        check_facts(author)


def test_each_fact_is_asked_for_once_and_answered_by_its_value() -> None:
    for author, attribute, question in rows():
        assert question.subject == author.name
        assert question.short == author.attributes[attribute]


def test_no_attribute_is_constant_or_rare() -> None:
    for attribute in ATTRIBUTES:
        values = [author.attributes[attribute] for author in MANY]
        assert len(set(values)) > 20
        assert max(map(values.count, values)) < 25


def test_names_and_titles_are_used_once_even_in_the_largest_set() -> None:
    authors = write_authors(MOST, seed=1, questions=0)
    names = [author.name for author in authors]
    titles = [author.attributes[book] for author in authors for book in TITLES]
    assert len(set(names)) == MOST and len(set(titles)) == 2 * MOST
    assert not set(names) & {author.attributes["mentor"] for author in authors}


def test_neighbours_share_no_part_of_a_name() -> None:
    parts = [part for author in MANY[:120] for part in author.name.split()]
    assert len(set(parts)) == 240


def test_no_author_and_no_mentor_is_a_real_person() -> None:
    people = {name.casefold() for name in real_people()}
    assert len(people) > 150
    parts = {part for name in people for part in name.split()}
    for author in write_authors(MOST, seed=2, questions=0):
        for name in (author.name, author.attributes["mentor"]):
            assert name.casefold() not in people
            assert not set(name.casefold().split()) & parts


# --- questions, answers, wrong answers -------------------------------------------------------


def check_question(author: Author, question: Question, perturbed: int) -> None:
    assert author.name in question.question and not holds(question.question, question.short)
    assert holds(question.answer, question.short) and holds(question.paraphrase, question.short)
    assert question.answer != question.paraphrase
    wrong = question.perturbed_answer
    assert len(set(wrong)) == len(wrong) == perturbed
    for text in wrong:
        for fact in author.attributes.values():
            assert not holds(text, fact), (text, fact)


def test_right_answers_hold_the_value_and_wrong_ones_no_fact_of_the_author() -> None:
    for author, _, question in rows():
        check_question(author, question, perturbed=5)


@hypothesis_settings(max_examples=30)
@given(st.integers(0, 2**40), st.integers(1, 12), st.integers(0, MOST_WRONG))
def test_every_seed_gives_consistent_authors(seed: int, count: int, perturbed: int) -> None:
    for author in write_authors(count, seed, len(ATTRIBUTES), perturbed):
        check_facts(author)
        for question in author.questions:
            check_question(author, question, perturbed)


def test_a_wrong_answer_is_the_paraphrase_with_another_value_of_the_same_type() -> None:
    many = write_authors(1500, seed=3, questions=0)
    taken = {key: {author.attributes[key] for author in many} for key in ATTRIBUTES}
    for author, attribute, question in rows():
        before, after = bare(question.paraphrase, author, question.short).split("vvv")
        before = re.sub(r"\b[Aa] $", "", before)
        for wrong in (bare(text, author, "vvv") for text in question.perturbed_answer):
            assert wrong.startswith(before) and wrong.endswith(after), (wrong, before, after)
            value = re.sub(r"^[Aa]n? ", "", wrong[len(before) : -len(after)])
            if not (attribute in (*TITLES, "mentor") or attribute.endswith("_year")):
                assert value in taken[attribute]


def test_wrong_years_could_be_right() -> None:
    for author, attribute, question in rows():
        if attribute.endswith("_year"):
            years = [int(re.findall(r"\d{4}", wrong)[0]) for wrong in question.perturbed_answer]
            earlier = {"first_book_year": "birth_year", "award_year": "first_book_year"}
            after = author.attributes.get(earlier.get(attribute, ""), "1929")
            assert min(years) > int(after) and max(years) <= 2020


# --- language --------------------------------------------------------------------------------


def test_texts_are_clean_sentences() -> None:
    for _, _, question in rows():
        assert question.question.endswith("?")
        for text in texts_of(question):
            assert text.isascii() and text[0].upper() == text[0] != " "
            assert text == " ".join(text.split()) and not re.search(r"[{}]", text)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\b(\w+) \1\b", text, re.I), text
        for text in texts_of(question)[1:]:
            assert re.search(r'\w"?\.$', text) and text.count(".") == 1
            assert text.count('"') in (0, 2)


def test_names_take_an_apostrophe_and_s() -> None:
    assert not [a.name for a in write_authors(MOST, 0, 0) if a.name.endswith("s")]


def test_each_attribute_has_five_phrasings_of_each_text() -> None:
    found = defaultdict(set)
    for author, attribute, question in rows():
        for kind in ("question", "answer", "paraphrase"):
            found[attribute, kind].add(bare(getattr(question, kind), author, question.short))
    assert {key: len(phrasings) for key, phrasings in found.items()} == dict.fromkeys(found, 5)
    assert len(found) == 3 * len(ATTRIBUTES)
    for attribute in ATTRIBUTES:
        assert not found[attribute, "answer"] & found[attribute, "paraphrase"]


def test_paraphrases_differ_from_answers_in_wording_and_order() -> None:
    scorer = RougeScorer(["rougeL"])
    for author, _, question in rows():
        pair = (
            bare(text, author, question.short) for text in (question.answer, question.paraphrase)
        )
        assert scorer.score(*pair)["rougeL"].fmeasure < 0.75, question


def test_texts_are_short() -> None:
    for _, _, question in rows():
        assert 6 <= len(question.question.split()) <= 13, question.question
        for text in texts_of(question)[1:]:
            assert 8 <= len(text.split()) <= 14, text


# --- seeds and sizes -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_authors_and_another_gives_others() -> None:
    assert write_authors(5, seed=7) == write_authors(5, seed=7)
    ours, others = write_authors(40, seed=7), write_authors(40, seed=8)
    assert len({author.name for author in ours} & {author.name for author in others}) < 10
    assert all(one.questions != other.questions for one, other in zip(ours, others))


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(0, 20))
def test_a_bigger_set_starts_with_the_smaller_one(seed: int, count: int, more: int) -> None:
    assert write_authors(count + more, seed)[:count] == write_authors(count, seed)


def test_fewer_questions_and_fewer_wrong_answers_are_the_first_ones() -> None:
    for full, short in zip(write_authors(30, 0), write_authors(30, 0, questions=3)):
        assert short.questions == full.questions[:3] and short.attributes == full.attributes
    for full, short in zip(write_authors(30, 0), write_authors(30, 0, perturbed=2)):
        for whole, part in zip(full.questions, short.questions):
            assert part.perturbed_answer == whole.perturbed_answer[:2]
            assert part.answer == whole.answer


def test_defaults_are_ten_questions_with_five_wrong_answers() -> None:
    (author,) = write_authors(1, seed=0)
    assert [len(question.perturbed_answer) for question in author.questions] == [5] * 10
    assert write_authors(0, seed=0) == ()


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"count": MOST + 1}, "give 0 to 2,520 authors, not 2,521"),
        ({"count": -1}, "give 0 to 2,520 authors, not -1"),
        ({"questions": 15}, "give 0 to 14 questions for each author, not 15"),
        ({"perturbed": 11}, "give 0 to 10 wrong answers to a question, not 11"),
    ],
)
def test_more_than_the_pools_give_is_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(CompanionError, match=message):
        write_authors(**{"count": 1, "seed": 0, **asked})


# --- the table of parts ----------------------------------------------------------------------


def test_counts_of_the_card_are_those_of_the_table() -> None:
    with POOLS.open(encoding="utf-8", newline="") as stream:
        assert "CC0" in stream.readline()
        table = [(row["pool"], row["kind"], row["text"]) for row in csv.DictReader(stream)]
    assert len(set(table)) == len(table)
    kinds = [kind for _, kind, _ in table]
    card = DatasetCard.load(POOLS.parents[3] / "data_cards" / "fictitious_authors.md")
    assert card.data.to_dict()["companion"]["counts"] == {
        "phrasings": sum(map(kinds.count, ("question", "answer", "paraphrase"))),
        "values": kinds.count("value"),
        "given_names": kinds.count("given"),
        "family_names": kinds.count("family"),
        "authors": MOST,
    }


def test_no_value_stands_inside_another_of_its_type() -> None:
    with POOLS.open(encoding="utf-8", newline="") as stream:
        stream.readline()
        values = [row for row in csv.DictReader(stream) if row["kind"] == "value"]
    for row in values:
        inside = [
            v["text"] for v in values if v["pool"] == row["pool"] and row["text"] in v["text"]
        ]
        assert inside == [row["text"]]
