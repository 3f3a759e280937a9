"""Which tokens of a prompt are corrupted: names in texts, a template's frame, tokens' characters."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from unlearn_lib.batches import TextEncoder
from unlearn_lib.datasets.authors import write_authors
from unlearn_lib.datasets.files import EMBEDDED, read_lines
from unlearn_lib.datasets.people import load_people
from unlearn_lib.eco import tokens
from unlearn_lib.eco.tokens import (
    SELECTORS,
    Frame,
    NerModel,
    chosen_tokens,
    name_spans,
    token_spans,
)
from unlearn_lib.errors import CompanionError

REAL_AUTHORS = (
    "Moliere", "Homer", "Henrik Ibsen", "James Joyce", "Mary Shelley", "Johann Wolfgang von Goethe",
    "Gabriel Garcia Marquez", "J.R.R. Tolkien", "Dante Alighieri", "Chinua Achebe",
    "Agatha Christie", "Virgil", "Anton Chekhov", "Jules Verne", "Mark Twain", "Herman Melville",
    "Bram Stoker", "Robert Burns", "Ernest Hemingway", "Thomas Mann", "Leo Tolstoy",
    "Hans Christian Andersen", "Fyodor Dostoevsky", "Miguel de Cervantes", "Victor Hugo",
    "Rabindranath Tagore", "Marcel Proust",
)  # fmt: skip
TEXT = "Who wrote “Näht, Café” – Zoë 東京? 🙂 It's Ann's."


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in name_spans(text)]


def spelt(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token stands for."""
    whole = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return [whole[start:end] for start, end in token_spans(tokenizer, ids)]


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, names",
    [
        ("Where was the author Oskel Sundgarde born?", ["Oskel Sundgarde"]),
        ("What did Oskel Sundgarde's father do?", ["Oskel Sundgarde"]),
        ("Tamberly Candlemere lives where?", ["Tamberly Candlemere"]),
        ("In which city did Ludwig van Beethoven die?", ["Ludwig van Beethoven"]),
        ("Who was van Gogh's brother?", ["van Gogh"]),
        ("Did al-Farabi meet Jean-Paul O'Neill?", ["al-Farabi", "Jean-Paul O'Neill"]),
        ("Are José Ortega y Gasset and Zoë Núñez alive?", ["José Ortega y Gasset", "Zoë Núñez"]),
        ("Is E\u0301mile Zola known?", ["E\u0301mile Zola"]),
        ("Did J.R.R. Tolkien or J. R. R. Tolkien write?", ["J.R.R. Tolkien", "J. R. R. Tolkien"]),
        ("Was Martin Luther King Jr. there?", ["Martin Luther King Jr."]),
        ("Which city did Alexander the Great found?", ["Alexander the Great"]),
        ("Who is in Jane Austen's Emma?", ["Jane Austen", "Emma"]),
        ("Is Dublin, Oscar Wilde's city, old?", ["Dublin", "Oscar Wilde"]),
        ('Who wrote "the quiet sea" and « Le Père »?', ["the quiet sea", "Le Père"]),
        ("Who wrote ‘The Baker’s Song’, not 'The Sea'?", ["The Baker’s Song", "The Sea"]),
        ("the bakers' and the smiths' books", []),
        ("I think I'd ask. Could you? What work do Ann do", ["Ann"]),
        ("She left. When was Ann born? The Hobbit is whose?", ["Ann", "Hobbit"]),
        ("Где родился Лев Толстой?", ["Где", "Лев Толстой"]),
        ("where was oskel sundgarde born?", []),
        ("東京はどこですか。", []),
        ('a 5" or 6 inch screen', []),
        ("", []),
    ],
)
def test_names_are_runs_of_capitals_and_quoted_titles(text: str, names: list[str]) -> None:
    assert found(text) == names


@given(st.text(st.sampled_from("aA .'\"‘’“”«»-,?É\u0301\nIdeJr"), max_size=40))
def test_spans_are_in_order_apart_and_without_space_at_their_ends(text: str) -> None:
    last = 0
    for start, end in name_spans(text):
        assert last <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        last = end


def test_a_quote_that_never_ends_costs_no_time() -> None:
    assert found('"' + " " * 50_000 + "'" + "Ann " * 2000) != []


def test_every_finds_no_name() -> None:
    assert SELECTORS["every"]("Who is Ann?") == [] != SELECTORS["names"]("Who is Ann?")


# --- how well names are found ----------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    pairs = [
        ("Who is Ann Lee?", "Ann Lee"),  # covered; 1 of 1 spans
        ("Is ann lee in Rome? Ann Lee is", "ann lee"),  # not covered; 0 of 2
        ('Is Bo\'s "old song" French?', "Bo"),  # covered; 2 of 3
        ("Who wrote Emma?", "Jane Austen"),  # left out
    ]
    recall, precision = tokens.accuracy(pairs)
    assert (recall.value, recall.n) == (pytest.approx(2 / 3), 3)
    assert (precision.value, precision.n) == (pytest.approx(3 / 6), 6)


def test_accuracy_of_finding_nothing() -> None:
    recall, precision = tokens.accuracy([("Who is Ann?", "Ann")], tokens.no_spans)
    assert recall.value == 0 and math.isnan(precision.value) and precision.n == 0


def test_accuracy_needs_a_name_in_its_text() -> None:
    with pytest.raises(ValueError, match="No text holds its name"):
        tokens.accuracy([("Who is it?", "Ann"), ("Who?", "")])


def test_accuracy_on_the_embedded_names_is_what_the_docstring_says() -> None:
    authors = [(q.question, q.subject) for a in write_authors(60, 7, 14) for q in a.questions]
    recall, precision = tokens.accuracy(authors)
    assert recall.n == 840 and recall.value == precision.value == 1.0
    people = [(q.question, q.subject) for q in load_people()[0]]
    recall, precision = tokens.accuracy(people)
    assert recall.n > 350 and recall.value == 1.0 and precision.value >= 0.9
    questions = [row["question"] for row in read_lines(EMBEDDED / "real_authors.jsonl")]
    recall, _ = tokens.accuracy([(text, name) for text in questions for name in REAL_AUTHORS])
    assert recall.n >= 30 and recall.value == 1.0


def test_tokens_of_embedded_names_are_chosen_and_few_others(
    tokenizer: Any, encoder: TextEncoder
) -> None:
    frame = Frame.of(encoder.prompt)
    chosen_and_named = chosen_count = named_count = 0
    for author in write_authors(12, 7, 14):
        question = author.questions[3].question
        ids = tokenizer(f"### Question: {question}\n ### Answer:")["input_ids"]
        flags, _ = chosen_tokens(tokenizer, ids, frame, name_spans)
        whole = tokenizer.decode(ids)
        start = whole.index(author.name)
        end = start + len(author.name)
        named = [a < end and start < b for a, b in token_spans(tokenizer, ids)]
        chosen_and_named += sum(a and b for a, b in zip(flags, named, strict=True))
        chosen_count, named_count = chosen_count + sum(flags), named_count + sum(named)
    assert chosen_and_named == chosen_count == named_count > 0


# --- characters of tokens --------------------------------------------------------------------


def word_piece() -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator([TEXT, "Where was Oskel born?"], 90, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


def sentence_piece() -> Any:
    """As Llama 2: spaces as ▁, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁WhowrteAnsIt'?.",
        "Wh",
        "Who",
    ]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    merges = [("W", "h"), ("Wh", "o")]
    whole = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")


def slow_bytes() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.fixture(scope="module")
def kinds(tokenizer: Any) -> dict[str, Callable[[str], tuple[Any, list[int]]]]:
    """Tokenizers of four kinds, each as a function from a text to itself and token ids."""
    made = {
        "byte-level": tokenizer,
        "word pieces": word_piece(),
        "sentence pieces": sentence_piece(),
        "slow bytes": slow_bytes(),
    }

    def encode(one: Any) -> Callable[[str], tuple[Any, list[int]]]:
        return lambda text: (one, one(text, add_special_tokens=False)["input_ids"])

    return {name: encode(one) for name, one in made.items()}


KINDS = ("byte-level", "word pieces", "sentence pieces", "slow bytes")


@pytest.mark.parametrize("kind", KINDS)
@given(st.one_of(st.just(TEXT), st.text(st.sampled_from("Who? 'sé東🙂\ufffdAn.\n"), max_size=30)))
@profile(max_examples=60)
def test_every_character_belongs_to_a_token(kinds: Any, kind: str, text: str) -> None:
    tokenizer, ids = kinds[kind](text)
    spans = token_spans(tokenizer, ids)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert len(spans) == len(ids)
    assert spans == sorted(spans) and [end for _, end in spans] == sorted(end for _, end in spans)
    assert {i for span in spans for i in range(*span)} == set(range(len(whole)))


def test_a_character_in_parts_belongs_to_each_of_its_tokens(kinds: Any) -> None:
    for kind in ("byte-level", "sentence pieces", "slow bytes"):
        tokenizer, ids = kinds[kind]("A 東 n")
        assert [text.strip() for text in spelt(tokenizer, ids)].count("東") == 3


def test_sentence_pieces_by_hand(kinds: Any) -> None:
    tokenizer, ids = kinds["sentence pieces"]("Who wrote?")
    assert spelt(tokenizer, ids) == ["W", "Who", " ", "w", "r", "o", "t", "e", "?"]


def test_word_pieces_are_joined_as_they_are_decoded(kinds: Any) -> None:
    tokenizer, ids = kinds["word pieces"]("Where was Oskel born?")
    words = "".join(spelt(tokenizer, ids))
    assert words == "Where was Oskel born?"


def test_no_tokens_have_no_characters(tokenizer: Any) -> None:
    assert token_spans(tokenizer, []) == []


# --- the template's frame --------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chat", "question_answer"])
def test_a_frame_is_what_a_template_adds(tokenizer: Any, template: str) -> None:
    encode = TextEncoder(tokenizer, template, 64, 32, 128).prompt
    frame = Frame.of(encode)
    ids = encode("How do birds fly?")
    start, end = frame.question(ids)
    assert ids[:start] == frame.before and ids[end:] == frame.after
    assert tokenizer.decode(ids[start:end]).strip() == "How do birds fly?"
    words = {"chat": ("<|user|>", "<|assistant|>"), "question_answer": ("### Question:", "### Answer:")}  # fmt: skip
    before, after = tokenizer.decode(ids[:start]), tokenizer.decode(ids[end:])
    assert before.strip() == words[template][0] and after.strip().endswith(words[template][1])


def test_a_token_that_joins_question_and_template_is_the_question_s() -> None:
    def encode(text: str) -> list[int]:
        """Characters, but «?» and the line's end after it are one token."""
        return [-1 if part == "?\n" else ord(part) for part in split(f"<{text}\n>")]

    def split(text: str) -> list[str]:
        marked = text.replace("?\n", "\0")
        return ["?\n" if sign == "\0" else sign for sign in marked]

    frame = Frame.of(encode)
    assert frame == Frame((ord("<"),), (ord(">"),))
    assert frame.question(encode("Who?")) == (1, 5) and frame.question(encode("Who")) == (1, 5)


def test_a_frame_that_does_not_stand_there_leaves_the_whole_row() -> None:
    frame = Frame((1, 2), (3,))
    assert frame.question([1, 2, 9, 8, 3]) == (2, 4)
    assert frame.question([1, 2, 3]) == (2, 2)
    for ids in ([1, 9, 9, 3], [1, 2, 9, 9], [1, 2], [2, 3], [9], []):
        assert frame.question(ids) == (0, len(ids))
    assert Frame((), ()).question([5, 6]) == (0, 2)


@pytest.mark.parametrize("prompt", [[1, 2, 3], []])
def test_prompts_without_their_question_have_no_frame(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="holds no token of its question"):
        Frame.of(lambda text: prompt)


# --- chosen tokens ---------------------------------------------------------------------------


def chosen(encoder: TextEncoder, question: str, selector: Any = name_spans) -> tuple[str, str]:
    """What the chosen tokens stand for, and the question as it was read."""
    ids = encoder.prompt(question)
    flags, text = chosen_tokens(encoder.tokenizer, ids, Frame.of(encoder.prompt), selector)
    assert len(flags) == len(ids) and not flags[-1]
    return encoder.tokenizer.decode([i for i, flag in zip(ids, flags) if flag]), text


def test_the_tokens_of_names_are_chosen(encoder: TextEncoder) -> None:
    question = "What is Zoë Lee's “old song” about?"
    picked, text = chosen(encoder, question)
    assert text == question
    assert picked.replace(" ", "") == "ZoëLeeoldsong"


@pytest.mark.parametrize("question", ["where was zoë born?", "東京はどこですか。"])
def test_without_names_all_of_the_question_is_chosen(encoder: TextEncoder, question: str) -> None:
    picked, text = chosen(encoder, question)
    assert picked.strip() == text == question


def test_every_chooses_all_of_the_question(encoder: TextEncoder) -> None:
    assert chosen(encoder, "Who is Ann?", SELECTORS["every"])[0].strip() == "Who is Ann?"


def test_where_the_frame_does_not_fit_all_but_the_last_are_chosen(tokenizer: Any) -> None:
    ids = tokenizer("### Question: Who is Ann?")["input_ids"]
    flags, text = chosen_tokens(tokenizer, ids, Frame((999,), ()), name_spans)
    assert flags == [True] * (len(ids) - 1) + [False] and text == "### Question: Who is Ann?"


def test_the_last_token_is_never_chosen(tokenizer: Any) -> None:
    ids = tokenizer("Who is Ann", add_special_tokens=False)["input_ids"]
    for selector in SELECTORS.values():
        flags, text = chosen_tokens(tokenizer, ids, Frame((), ()), selector)
        assert text == "Who is Ann" and any(flags) and not flags[-1]
    assert chosen_tokens(tokenizer, ids[:1], Frame((), ()), name_spans)[0] == [False]


def test_an_empty_question_has_nothing_to_choose(tokenizer: Any) -> None:
    assert chosen_tokens(tokenizer, [5, 6], Frame((5,), (6,)), name_spans) == ([False, False], "")
    with pytest.raises(ValueError, match="The prompt has no token"):
        chosen_tokens(tokenizer, [], Frame((), ()), name_spans)


def test_special_tokens_are_chosen_but_not_read(tokenizer: Any) -> None:
    ids = tokenizer("what</s> now?", add_special_tokens=False)["input_ids"]
    flags, text = chosen_tokens(tokenizer, ids, Frame((), ()), name_spans)
    assert tokenizer.eos_token_id in ids and all(flags[:-1]) and text == "what now?"


# --- a token classifier ----------------------------------------------------------------------


NAMED = ("Ann", "Os", "Sund")


@pytest.fixture(scope="module")
def ner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers that calls the words in NAMED persons, and nothing else."""
    import torch
    import transformers as hf
    from tokenizers import BertWordPieceTokenizer

    folder = tmp_path_factory.mktemp("ner")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *NAMED, "##kel", "##garde", "who", "is", "?", ","]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    wordpiece = BertWordPieceTokenizer(vocabulary, lowercase=False)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    hf.PreTrainedTokenizerFast(tokenizer_object=wordpiece._tokenizer, **names).save_pretrained(folder)  # fmt: skip
    config = hf.BertConfig(
        vocab_size=len(pieces), hidden_size=4, num_hidden_layers=0, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=16, id2label={0: "O", 1: "B-PER"},
        label2id={"O": 0, "B-PER": 1},
    )  # fmt: skip
    model = hf.BertForTokenClassification(config)
    with torch.no_grad():
        embeddings = model.bert.embeddings
        for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight.zero_()
        embeddings.word_embeddings.weight.copy_(torch.tensor([[1.0, 1, -1, -1]] * len(pieces)))
        embeddings.word_embeddings.weight[[vocabulary[piece] for piece in NAMED]] *= -1
        model.classifier.weight.copy_(torch.tensor([[1.0, 1, -1, -1], [-1.0, -1, 1, 1]]))
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    return folder


def test_a_token_classifier_finds_whole_words(ner_folder: Path) -> None:
    ner = NerModel.load(ner_folder)
    text = "who is Oskel Sundgarde, Ann?"
    assert [text[start:end] for start, end in ner(text)] == ["Oskel", "Sundgarde", "Ann"]
    assert ner("who is who?") == ner("  ") == []


def test_a_token_classifier_reads_long_texts_in_windows(ner_folder: Path) -> None:
    text = "who is " * 40 + "Oskel? " + "is who " * 40
    assert [text[start:end] for start, end in NerModel.load(ner_folder)(text)] == ["Oskel"]


def test_a_folder_without_a_token_classifier_is_refused(
    tmp_path: Path, ner_folder: Path, tiny_assets: Any
) -> None:
    with pytest.raises(CompanionError, match=f"no token classifier in {tmp_path}"):
        NerModel.load(tmp_path)
    for file in ner_folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 2**9 if "safe" in file.name else None]
        )
    with pytest.raises(CompanionError, match="truncated or altered"):
        NerModel.load(tmp_path)
    with pytest.raises(CompanionError, match="was not trained to find names"):
        NerModel.load(tiny_assets["gpt2"].folder)
