"""Text as token ids: questions with answers, and running text in chunks and passages.

An answer has the tokens that it has behind a prompt, and the prompt those that a model is asked
with, so the first answer token is known by construction. The released code of Arora et al. takes
the number of fields of the tokenizer's output (two) for the start of the answer.

A passage is a prompt (its first tokens) and an answer (the tokens that follow). Every passage
has an answer, unlike in the released code of Arora et al., where a sentence of up to 200
characters gets an empty label and so a forget loss of zero.
"""

import datetime
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from unlearn_lib.assets import Asset
from unlearn_lib.model_settings import ChatSettings
from unlearn_lib.util import CompanionError, nearest

Tokens = tuple[int, ...]
QUESTION_ANSWER = "### Question: {question}\n ### Answer: "
QUESTION, ANSWER = "Why is the sky blue?", "Because."
SHORTEST_ANSWER = 20
"""A last passage with a shorter answer is left out (or one below `answer_tokens`, if smaller)."""


@dataclass(frozen=True)
class Example:
    """A prompt with its answers, as token ids; every answer is read after the same prompt.

    With `score_prompt` the prompt's tokens (after its first) are scored too, for losses over
    all real tokens; such an example has exactly one answer.
    """

    prompt: Tokens
    answers: tuple[Tokens, ...]
    score_prompt: bool = False

    @property
    def length(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(map(len, self.answers))


def shared_start(rows: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that two or more rows have in common; 0 for a single row."""
    return len(commonprefix([tuple(row) for row in rows])) if len(rows) > 1 else 0


def load_tokenizer(asset: Asset) -> Any:
    """Load the tokenizer among a model's files.

    Raises:
        CompanionError: there is a SentencePiece model (`tokenizer.model`) and no `tokenizer.json`,
            and what reads it is not installed, or transformers does not split a text as
            SentencePiece itself does; or transformers cannot read the files.
    """
    whole = (asset.folder / "tokenizer.json").is_file()
    alone = [] if whole else sorted(asset.folder.glob("*.model"))
    if alone and not (is_sentencepiece_available() and is_protobuf_available()):
        raise CompanionError(
            f"The tokenizer of '{asset.id}' is {alone[0].name} alone, and the packages that read "
            "it are not installed: 'pip install sentencepiece protobuf', or add tokenizer.json."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(asset.folder, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers each raise their own kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(":. ")
        raise CompanionError(
            f"The model '{asset.id}' from {asset.source} cannot be read: {reason}; fetch or make "
            "it again."
        ) from error
    if alone:
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(alone[0])).encode(QUESTION, out_type=str)
        if tokenizer.tokenize(QUESTION, add_special_tokens=False) != pieces:
            raise CompanionError(
                f"transformers does not read {alone[0].name} of '{asset.id}' as SentencePiece "
                "does; add the model's own tokenizer_config.json or tokenizer.json."
            )
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of the special tokens, under the names that configurations of transformers use."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def context_of(config: Any) -> int | None:
    """Return the longest input in tokens that a configuration allows; None where it states none.

    Where positions are scaled by length (dynamic, longrope) it is the length before scaling: beyond
    it a row's positions would depend on the longest row of its batch.
    """
    lengths = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        if part.get("rope_type") in ("dynamic", "longrope"):
            name = "original_max_position_embeddings"
            lengths += [part.get(name), getattr(config, name, None)]
    return min((int(length) for length in lengths if length), default=None)


def end_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return the tokens that end an answer, in ascending order.

    They are the tokenizer's end token, those of the model's `generation_config` (one or several),
    and what ends a turn in the chat template (Gemma's `<end_of_turn>`, Phi's `<|end|>`).
    """
    stated = getattr(generation_config, "eos_token_id", None)
    stated = stated if isinstance(stated, list) else [stated]
    ends = {tokenizer.eos_token_id, *stated, _turn_end(tokenizer)}
    return sorted(token for token in ends if token is not None)


def _turn_end(tokenizer: Any) -> int | None:
    """The first special token after an answer in the chat template; None where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # it takes other roles; then its turns are not known
        return None
    tokens = tokenizer(text.rpartition(ANSWER)[2], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return next((token for token in tokens if token in added and added[token].special), None)


def _without_clock(template: str, day: datetime.date) -> str:
    """A chat template whose `strftime_now` tells one day; transformers lets no function in."""
    if "strftime_now" not in template:
        return template
    forms = sorted(set(re.findall(r"%-?[a-zA-Z]", template)))
    told = "".join(f".replace({form!r}, {day.strftime(form)!r})" for form in forms)
    return f"{{% macro strftime_now(form) %}}{{{{ form{told} }}}}{{% endmacro %}}\n{template}"


def text_prefix(tokenizer: Any) -> Tokens:
    """What a tokenizer puts before every text (OPT's `</s>`), without what it puts behind it."""
    whole, body = (tokenizer("a", add_special_tokens=own)["input_ids"] for own in (True, False))
    starts = range(len(whole) - len(body) + 1)
    start = next((i for i in starts if whole[i : i + len(body)] == body), 0)
    return tuple(whole[:start])


def _require_fit(names: str, tokens: int, context: int) -> None:
    if tokens > context:
        raise CompanionError(
            f"{names}: {tokens} tokens do not fit the model's context of {context}; lower it."
        )


@dataclass(frozen=True)
class TextEncoder:
    """Turn questions and answers into token ids, the same way in training and evaluation.

    A prompt ends where the template puts the answer, but for the spaces before it: a tokenizer
    joins them with the answer's first word.

    Args:
        tokenizer: a transformers tokenizer.
        template: `chat` (the tokenizer's chat template, one user turn) or `question_answer`
            (`### Question: ... ### Answer:`, the template of Arora et al.).
        prompt_tokens: longest prompt; `prompt` raises beyond it, `fits` tells beforehand.
        answer_tokens: answers are cut after this many tokens.
        context: the model's context; prompt and answer together must fit.
        before: what stands before every question, for baselines that only prompt.
        chat: how the chat template is filled.
        model_id: whose tokenizer it is, for messages.

    Raises:
        CompanionError: prompt and answer do not fit, or there is no chat template that takes the
            turns.
    """

    tokenizer: Any
    template: str
    prompt_tokens: int
    answer_tokens: int
    context: int
    before: str = ""
    chat: ChatSettings = ChatSettings()
    model_id: str = "this model"

    def __post_init__(self) -> None:
        tokens = self.prompt_tokens + self.answer_tokens
        _require_fit("'prompt_tokens' and 'answer_tokens'", tokens, self.context)
        if self.template not in ("chat", "question_answer"):
            near = nearest(self.template, ("chat", "question_answer"))
            raise CompanionError(f"There is no template '{self.template}'{near}.")
        if self.template == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise CompanionError(
                f"The tokenizer of '{self.model_id}' has no chat template (a base model): set "
                "'template: question_answer' in the task's data."
            )
        self._text(QUESTION)

    @functools.cached_property
    def _template(self) -> str:
        return _without_clock(self.tokenizer.get_chat_template(), self.chat.date)

    def _text(self, question: str) -> tuple[str, str]:
        """The template's text up to the answer, without the spaces at its end; and these."""
        if self.template != "chat":
            text = QUESTION_ANSWER.format(question=question)
            return text.rstrip(" "), " "
        system = () if self.chat.system is None else (("system", self.chat.system),)
        turns = (*system, ("user", question), ("assistant", ANSWER))
        messages = [{"role": role, "content": content} for role, content in turns]
        options = {"chat_template": self._template, "date_string": f"{self.chat.date:%d %b %Y}"}
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
            text = text[: text.rindex(ANSWER)]
        except (TemplateError, ValueError) as error:
            raise CompanionError(
                f"The chat template of '{self.model_id}' takes no turns of "
                f"{', '.join(role for role, _ in turns)} ({error}): change 'chat' of the model, or "
                "set 'template: question_answer' in the task's data."
            ) from error
        spaces = text[len(text.rstrip(" ")) :]
        wanted = self.chat.space_before_answer
        return text.rstrip(" "), spaces if wanted is None else " " * wanted

    def _encode(self, text: str) -> Tokens:
        """A text that begins as a prompt does; what a tokenizer puts at a start follows BOS."""
        first = self.tokenizer.bos_token
        if self.template != "chat":
            start = text_prefix(self.tokenizer)
        elif first and text.startswith(first):
            start, text = (self.tokenizer.bos_token_id,), text.removeprefix(first)
        else:
            start = ()
        return (*start, *self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt(self, question: str) -> Tokens:
        return self._encode(self._text(self.before + question)[0])

    @functools.cached_property
    def _starts(self) -> list[tuple[str, Tokens]]:
        """Texts that an answer is encoded behind, with the spaces before it, and their tokens."""
        text, spaces = self._text(QUESTION)
        return [(start + spaces, self._encode(start)) for start in (text, "\n")]

    def continuation(self, text: str) -> Tokens:
        """Encode a text that follows a prompt, with the tokens that it has in both together.

        Where one token would span both (`](`), the prompt keeps its own, since a model is asked
        with them: the text then has the tokens that it has behind a line break.

        Raises:
            CompanionError: the tokenizer joins it with a line break, too.
        """
        if not text:
            return ()
        for start, tokens in self._starts:
            both = self._encode(start + text)
            if both[: len(tokens)] == tokens:
                return both[len(tokens) :]
        raise CompanionError(
            f"The tokenizer of '{self.model_id}' joins the answer {text[:40]!r} with what stands "
            "before it, so that it has no first token; write it otherwise."
        )

    def fits(self, question: str) -> bool:
        """Tell whether a question is within `prompt_tokens`."""
        return len(self._prompt(question)) <= self.prompt_tokens

    def prompt(self, question: str) -> Tokens:
        """Encode a question up to the point where the answer begins.

        Raises:
            CompanionError: longer than `prompt_tokens`; shows how it begins.
        """
        tokens = self._prompt(question)
        if len(tokens) > self.prompt_tokens:
            raise CompanionError(
                f"A prompt has {len(tokens)} tokens, more than prompt_tokens {self.prompt_tokens}; "
                f"shorten it or raise that in the profile (it begins {question[:40]!r})."
            )
        return tokens

    def answer(self, text: str) -> Tokens:
        """Encode an answer with its end token; an answer that was cut has none.

        Raises:
            CompanionError: the answer is empty, or has no token.
        """
        text = text.strip()
        tokens = self.continuation(text)
        if not tokens:
            raise CompanionError(
                f"An answer is empty or has no token ({text[:40]!r}); remove the row or write one."
            )
        return (*tokens, self.tokenizer.eos_token_id)[: self.answer_tokens]

    def example(self, question: str, *answers: str) -> Example:
        """Encode a question with one or more answers."""
        return Example(self.prompt(question), tuple(map(self.answer, answers)))


@dataclass(frozen=True)
class PassageEncoder:
    """Cut texts into chunks to learn from and passages to continue, as token ids.

    Args:
        tokenizer: a transformers tokenizer; what it puts before a text (OPT's `</s>`) stands
            before every chunk and passage.
        prompt_tokens, answer_tokens: length of a passage's two parts.
        context: the model's context; a passage must fit.
    """

    tokenizer: Any
    prompt_tokens: int
    answer_tokens: int
    context: int

    def __post_init__(self) -> None:
        tokens = len(self.prefix) + self.prompt_tokens + self.answer_tokens
        _require_fit("'prompt_tokens' and 'answer_tokens'", tokens, self.context)

    @functools.cached_property
    def prefix(self) -> Tokens:
        """What the tokenizer puts before every text."""
        return text_prefix(self.tokenizer)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, nothing added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def passages(self, texts: Sequence[str], score_prompt: bool = False) -> list[Example]:
        """Cut texts into passages; with `score_prompt` losses see all their tokens.

        Passages follow each other at `answer_tokens` tokens, so every token of a text but the
        first few is an answer token of exactly one passage.
        """
        shortest = min(SHORTEST_ANSWER, self.answer_tokens)
        examples = []
        for tokens in map(self.tokens, texts):
            for middle in range(self.prompt_tokens, len(tokens) - shortest + 1, self.answer_tokens):
                prompt = (*self.prefix, *tokens[middle - self.prompt_tokens : middle])
                answer = tuple(tokens[middle : middle + self.answer_tokens])
                examples.append(Example(prompt, (answer,), score_prompt))
        return examples

    def chunks(self, texts: Sequence[str], size: int, shift: int = 0) -> list[Example]:
        """Cut texts into chunks of `size` tokens, each scored from its first token that can be.

        Args:
            shift: tokens of each text's first chunk, `size` if 0; another shift cuts elsewhere.

        Raises:
            CompanionError: a chunk does not fit the model's context.
        """
        _require_fit("'chunk_tokens'", len(self.prefix) + size, self.context)
        rows = [
            (*self.prefix, *tokens[max(start, 0) : start + size])
            for tokens in map(self.tokens, texts)
            for start in range(shift % size - size, len(tokens), size)
        ]
        first = max(1, len(self.prefix))
        return [Example(row[:first], (row[first:],)) for row in rows if len(row) > first]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
