"""No way around the guard: methods, arguments, caches, masks, turns and streams of `generate`."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_guard_model import GUARD, KeyWord, padded
from transformers import GenerationConfig, GPT2LMHeadModel, LlamaForCausalLM, MambaForCausalLM
from transformers.generation import GenerationMixin

from unlearn_lib.guard import model as guard_model
from unlearn_lib.guard.model import ATTRIBUTES, FORWARD, GENERATION, GuardedModel
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.util import CompanionError

BENIGN, FORBIDDEN = "How do birds fly so far?", "Where was Ann born?"
NEW: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
METHODS = [name for name in dir(GenerationMixin) if not name.startswith("_")]


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "kwargs", "input_ids"}


READ = set().union(
    *(parameters(kind.forward) for kind in (LlamaForCausalLM, GPT2LMHeadModel, MambaForCausalLM))
)
ARGUMENTS = sorted(
    READ | parameters(GenerationMixin.generate) | set(GenerationConfig().to_dict())
    | {"tokenizer", "assistant_tokenizer", "encoder_outputs", "trust_remote_code", "new_in_6"}
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    return load_tiny("llama")


@pytest.fixture(scope="module")
def guarded(plain: LanguageModel, encoder: TextEncoder) -> GuardedModel:
    return GuardedModel(plain.model, plain.tokenizer, GUARD, Frame.of(encoder.prompt))


@pytest.fixture(scope="module")
def benign(encoder: TextEncoder) -> torch.Tensor:
    return torch.tensor([encoder.prompt(BENIGN)])


@pytest.fixture(scope="module")
def forbidden(encoder: TextEncoder) -> torch.Tensor:
    return torch.tensor([encoder.prompt(FORBIDDEN)])


@contextmanager
def watched(model: GuardedModel, question: torch.Tensor) -> Iterator[Callable[[], bool]]:
    """Yield what says whether a row's plain question [1, T] came to the first block, also in
    pieces: its embeddings without the template's, one after the other."""
    start, end = model.frame.question(question[0].tolist())
    secret = model.model.get_input_embeddings()(question[0, start:end]).detach()
    reads: list[torch.Tensor] = []

    def seen() -> bool:
        joint = [torch.cat(reads, 1)] if len({len(part) for part in reads}) == 1 else []
        longer = [part for part in [*reads, *joint] if part.shape[1] >= len(secret)]
        windows = (part.unfold(1, len(secret), 1) == secret.T for part in longer)
        return any(bool(same.flatten(2).all(-1).any()) for same in windows)

    block = model.model.model.layers[0]
    with block.register_forward_pre_hook(lambda _, read: reads.append(read[0].detach().clone())):
        yield seen


def test_the_plain_model_reads_the_question_whole_and_in_pieces(
    guarded: GuardedModel, forbidden: torch.Tensor
) -> None:
    with watched(guarded, forbidden) as seen:
        guarded.model.generate(forbidden, **NEW)
        assert seen()
    with watched(guarded, forbidden) as seen:
        cache = guarded.model(forbidden[:, :4], use_cache=True).past_key_values
        guarded.model.generate(forbidden, past_key_values=cache, **NEW)
        assert seen()


# --- methods, arguments, settings ----------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_no_method_but_generate_is_there(guarded: GuardedModel, name: str) -> None:
    assert hasattr(guarded.model, name)
    assert name == "generate" or not hasattr(guarded, name)


def test_an_attribute_is_the_wrapped_models_only_if_it_is_listed(
    guarded: GuardedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded.model, "padded", True, raising=False)  # how its rows are laid
    assert guarded.padded and guarded.device == guarded.model.device
    passed = {name for name in dir(guarded.model) if name not in dir(torch.nn.Module())}
    own = {"generate", "guarded", "forward", "save_pretrained", "from_pretrained", "model"}
    assert {name for name in passed if hasattr(guarded, name)} <= ATTRIBUTES | own
    with pytest.raises(AttributeError, match="no 'generate_batch'.*call `generate`"):
        guarded.generate_batch  # noqa: B018


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_argument_or_setting_lets_a_flagged_question_through(
    guarded: GuardedModel, benign: torch.Tensor, forbidden: torch.Tensor, name: str
) -> None:
    embedded = guarded.get_input_embeddings()(forbidden).detach()
    cache = guarded.model(forbidden[:, :-1], use_cache=True).past_key_values
    values = [forbidden, embedded, cache, guarded.model, True, 2, 0.5, [2], "paged"]
    values.append(lambda *_, **__: forbidden)
    batches = [{"input_ids": benign}, padded([forbidden[0].tolist(), benign[0].tolist()])]
    for value in values:
        config = GenerationConfig(**NEW)
        setattr(config, name, value)
        for more in ({**NEW, name: value}, {"generation_config": config}):
            for batch in batches:
                with watched(guarded, forbidden) as seen, suppress(Exception):
                    guarded.generate(**{**batch, **more})
                assert not seen()
        for batch in batches:
            with watched(guarded, forbidden) as seen, suppress(Exception):
                guarded(**{**batch, name: value})
            assert not seen()
    if name not in GENERATION | {"attention_mask"}:
        with pytest.raises((CompanionError, TypeError), match=name):
            guarded.generate(benign, **NEW, **{name: forbidden})
    if name not in FORWARD | {"attention_mask"}:
        with pytest.raises(CompanionError, match=name):
            guarded(benign, **{name: forbidden})


SETTINGS = {
    "num_beams": st.sampled_from([1, 2]),
    "use_cache": st.booleans(),
    "repetition_penalty": st.sampled_from([1.0, 1.3]),
    "no_repeat_ngram_size": st.sampled_from([0, 2]),
    "output_hidden_states": st.booleans(),
    "max_time": st.sampled_from([None, 60.0]),
    "eos_token_id": st.sampled_from([2, [2, 5]]),
}


@given(st.fixed_dictionaries({}, optional=SETTINGS), st.booleans(), st.permutations(range(2)))
@settings(max_examples=25)
def test_any_mixture_of_allowed_settings_answers_others_as_before(
    guarded: GuardedModel,
    benign: torch.Tensor,
    forbidden: torch.Tensor,
    chosen: dict[str, Any],
    in_config: bool,
    order: list[int],
) -> None:
    rows = [(forbidden, benign)[place][0].tolist() for place in order]
    options = NEW | chosen
    given = {"generation_config": GenerationConfig(**options)} if in_config else options
    with watched(guarded, forbidden) as seen:
        answers = guarded.generate(**padded(rows), **given)
        assert not seen()
    expected = guarded.model.generate(**padded(rows), **options)
    assert torch.equal(answers[order.index(1)], expected[order.index(1)])


# --- ways that were open -------------------------------------------------------------------------


def filled(model: GuardedModel, ids: torch.Tensor) -> Any:
    return model.model(ids, use_cache=True).past_key_values


def hiding(ids: torch.Tensor, *places: int) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[:, list(places)] = 0
    return mask


ATTACKS: dict[str, Callable[[GuardedModel, torch.Tensor, torch.Tensor], Any]] = {
    "inputs_embeds": lambda m, b, f: m.generate(
        b, inputs_embeds=m.get_input_embeddings()(f), **NEW
    ),
    "past_key_values": lambda m, b, f: m.generate(f, past_key_values=filled(m, f[:, :5]), **NEW),
    "'past_key_values'": lambda m, b, f: m(f[:, 5:], past_key_values=filled(m, f[:, :5])),
    "negative_prompt_ids|guidance_scale": lambda m, b, f: m.generate(
        b, negative_prompt_ids=f, guidance_scale=1e-6, **NEW
    ),
    "custom_generate": lambda m, b, f: m.generate(
        b, custom_generate=lambda model, *_, **__: model(f), **NEW
    ),
    "'custom_generate'": lambda m, b, f: m.generate(
        b,
        custom_generate=lambda model, *_, **__: model(f),
        generation_config=GenerationConfig(custom_generate=None, **NEW),
    ),
    "prefix_allowed_tokens_fn": lambda m, b, f: m.generate(
        b, prefix_allowed_tokens_fn=lambda row, ids: f[0, ids.shape[0] - b.shape[1]], **NEW
    ),
    "sequence_bias": lambda m, b, f: m.generate(
        b, generation_config=GenerationConfig(sequence_bias={(int(f[0, 5]),): 99.0}, **NEW)
    ),
    "token_healing": lambda m, b, f: m.generate(b, token_healing=True, **NEW),
    "attention mask": lambda m, b, f: m.generate(f, hiding(f, f.shape[1] - 1), **NEW),
    "The attention mask": lambda m, b, f: m(f, attention_mask=hiding(f, 4, 5, 6)),
    "hide padding alone": lambda m, b, f: m(
        f, attention_mask=torch.ones(1, 1, f.shape[1], f.shape[1], dtype=torch.bool).tril()
    ),
    "position_ids must rise": lambda m, b, f: m(
        f.flip(1), position_ids=torch.arange(f.shape[1]).flip(0)[None]
    ),
    "packed_lengths": lambda m, b, f: m(f, packed_lengths=[0, 4, f.shape[1] - 4]),
    "2 rows and 1 prompts": lambda m, b, f: m(f.repeat(2, 1), prompts=[[*range(f.shape[1])]]),
    "token_type_ids": lambda m, b, f: m(torch.zeros_like(f), token_type_ids=f),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_text_that_the_guard_does_not_see_is_refused(
    guarded: GuardedModel, benign: torch.Tensor, forbidden: torch.Tensor, name: str
) -> None:
    with pytest.raises(CompanionError, match=name):
        ATTACKS[name](guarded, benign, forbidden)


def test_without_prompts_the_ids_are_judged(guarded: GuardedModel, forbidden: torch.Tensor) -> None:
    logits = guarded(forbidden, prompts=[]).logits
    assert torch.equal(logits, guarded(forbidden).logits)
    assert not torch.equal(logits, guarded.model(forbidden).logits)


@pytest.mark.parametrize(
    "turns",
    [
        [f"{BENIGN} And {FORBIDDEN.lower().replace('ann', 'Ann')}"],
        [f"{FORBIDDEN} {BENIGN}"],
        [BENIGN, "They beat their wings.", FORBIDDEN],
        [FORBIDDEN, "I cannot tell.", "Why not?"],
    ],
)
def test_half_a_prompt_or_one_of_many_turns_is_enough(
    plain: LanguageModel, turns: list[str]
) -> None:
    tokenizer = plain.tokenizer
    frame = Frame.of(TextEncoder(tokenizer, "chat", 64, 32, 128).prompt)
    model = GuardedModel(plain.model, tokenizer, GUARD, frame)
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns)]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with watched(model, ids) as seen:
        model.generate(ids, **NEW)
        assert not seen()
    assert not torch.equal(model(ids).logits[0, -1], plain.model(ids).logits[0, -1])


@pytest.mark.parametrize("flags", [[], [True, False], [[False]]])
def test_a_judge_gives_a_flag_for_each_prompt(
    guarded: GuardedModel, benign: torch.Tensor, flags: list[Any]
) -> None:
    model = GuardedModel(guarded.model, guarded.tokenizer, GUARD, judge=lambda texts: flags)
    with pytest.raises(CompanionError, match="flags for 1 prompts"):
        model.generate(benign, **NEW)


# --- streams -------------------------------------------------------------------------------------


class Stream:
    """Keeps what is put into it, the prompt first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Nothing is left to write."""


def test_a_stream_begins_after_the_judgement_and_says_what_an_answer_says(
    guarded: GuardedModel, forbidden: torch.Tensor
) -> None:
    stream, before = Stream(), []

    def judge(texts: Sequence[str]) -> np.ndarray:
        before.append(list(stream.tokens))
        return GUARD.flags(texts)

    model = GuardedModel(guarded.model, guarded.tokenizer, GUARD, guarded.frame, judge)
    model.generate(forbidden, streamer=stream, **NEW)
    assert before == [[]] and stream.tokens == guarded.generate(forbidden, **NEW)[0].tolist()


def test_no_token_is_streamed_where_the_guard_fails(
    guarded: GuardedModel, forbidden: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, other = Stream(), torch.nn.Embedding(9, 64)
    monkeypatch.setattr(guarded.model, "get_input_embeddings", lambda: other)
    with pytest.raises(CompanionError, match="never looked up its embeddings"):
        guarded.generate(forbidden, streamer=stream, **NEW)
    assert stream.tokens == forbidden[0].tolist()

    def fail(texts: Sequence[str]) -> Sequence[bool]:
        raise CompanionError("no judgement")

    model = GuardedModel(guarded.model, guarded.tokenizer, GUARD, guarded.frame, fail)
    with pytest.raises(CompanionError, match="no judgement"):
        model.generate(forbidden, streamer=(stream := Stream()), **NEW)
    assert stream.tokens == []


# --- where the guard runs ------------------------------------------------------------------------


def test_the_classifier_and_the_finder_of_names_follow_the_model(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Placed(KeyWord):
        model = SimpleNamespace(device=torch.device("cpu"))

        def to(self, device: torch.device) -> None:
            self.model.device = device

    class Elsewhere(torch.nn.Module):
        embeddings = torch.nn.Embedding(9, 4, device="meta")

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embeddings

    places: list[Any] = []
    monkeypatch.setattr(guard_model, "find_model", lambda name: SimpleNamespace(folder=None))
    monkeypatch.setattr(guard_model, "load_ner", lambda folder, place: places.append(place))
    classifier = Placed()
    corruption = GUARD.corruption.model_copy(update={"ner": "names"})
    guard = replace(GUARD, classifier=classifier, corruption=corruption)  # type: ignore[arg-type]
    model = GuardedModel(Elsewhere(), tokenizer, guard)
    model.plan([tokenizer(FORBIDDEN)["input_ids"]])
    assert classifier.model.device.type == "meta" and places == [torch.device("meta")]
    monkeypatch.setattr(Elsewhere, "embeddings", torch.nn.Embedding(9, 4))
    assert model.plan([tokenizer(BENIGN)["input_ids"]]) == []
    assert classifier.model.device.type == "cpu"
    assert np.array_equal(guard.flags([FORBIDDEN]), [True])
