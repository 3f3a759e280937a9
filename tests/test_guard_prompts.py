"""A guard's prompts: five sets that never meet, and nothing trained on that is judged."""

import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.datasets import book, science, tofu
from unlearn_lib.datasets import guard_prompts as data
from unlearn_lib.datasets.authors import ATTRIBUTES, phrasings, write_authors
from unlearn_lib.datasets.guard_prompts import GuardPrompts, windows
from unlearn_lib.datasets.question_sets import folded
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import Profile, load_profile

REAL_MIRROR = Path(
    os.environ.get("UNLEARN_MIRROR", Path(__file__).resolve().parents[2] / "shared" / "mirror")
)
real_mirror = pytest.mark.skipif(
    not (REAL_MIRROR / "datasets" / tofu.TOFU).is_dir(), reason="no mirror of TOFU"
)
RETAIN = ("retain", "calibration", "held_out_retain")
FORGET = ("forget", "held_out_forget")
ORDINARY = tuple(f"How is ordinary thing {number} made?" for number in range(200))
PARTS = {name: load_profile(name) for name in ("smoke", "laptop")}


@cache
def general(name: str) -> tuple[str, ...]:
    """The ordinary questions of a profile, by its name."""
    return data.general_prompts("embedded" if name == "smoke" else "truthful_qa")[0]


@cache
def loaded(name: str, which: str) -> Any:
    """The splits of a profile's experiment, by their names."""
    load = tofu.load if which == "tofu" else book.load
    return load(getattr(PARTS[name], which).data)


def entities(profile: Profile, **changed: Any) -> tuple[GuardPrompts, tofu.TofuSplits]:
    splits = loaded(profile.name, "tofu")
    prompts = data.entity_prompts(profile.tofu.data, splits, general(profile.name), **changed)
    return prompts, splits


def passages(profile: Profile, **changed: Any) -> tuple[GuardPrompts, list[str], list[str]]:
    """The prompts, and the texts of the chapters to forget and of all others."""
    splits = loaded(profile.name, "book")
    forget = [chapter.text for chapter in splits.forget]
    kept = [chapter.text for chapter in splits.book.chapters if chapter not in splits.forget]
    prompts = data.passage_prompts(forget, kept, splits.retain, general(profile.name), **changed)
    return prompts, forget, kept


def questions(name: str, count: int) -> list[Question]:
    return [Question(f"What is part {number} of {name}?", "This.") for number in range(count)]


def rephrased(rows: Sequence[Question], count: int = 4) -> dict[str, tuple[str, ...]]:
    return {
        row.question: tuple(f"{row.question[:-1]}, put in way {n}?" for n in range(count))
        for row in rows
    }


def choices(forget: int = 20, retain: int = 20, **changed: Any) -> GuardPrompts:
    art, craft = questions("the art", forget), questions("the craft", retain)
    chosen = {"rephrased": rephrased([*art, *craft]), "general": ORDINARY} | changed
    return data.choice_prompts(art, craft, **chosen)


def sets(prompts: GuardPrompts) -> dict[str, list[str]]:
    return {
        field.name: [folded(text) for text in getattr(prompts, field.name)]
        for field in fields(prompts)
    }


def apart(prompts: GuardPrompts) -> bool:
    texts = list(chain(*sets(prompts).values()))
    return len(texts) == len(set(texts)) and all(texts)


def retained(prompts: GuardPrompts) -> list[str]:
    return [text for name in RETAIN for text in getattr(prompts, name)]


@pytest.mark.parametrize("profile", PARTS.values(), ids=PARTS)
class TestProfiles:
    def test_no_text_is_in_two_sets(self, profile: Profile) -> None:
        assert apart(entities(profile)[0])
        assert apart(passages(profile)[0])

    def test_there_is_enough_to_calibrate_and_to_score(self, profile: Profile) -> None:
        least = {"calibration": 100, "held_out_forget": 30, "held_out_retain": 100}
        if profile.name == "laptop":
            least |= {"held_out_forget": 60, "held_out_retain": 200}
        for prompts in (entities(profile)[0], passages(profile)[0]):
            for name, count in least.items():
                assert len(getattr(prompts, name)) >= count, name

    def test_a_limit_leaves_little_to_train_on_but_enough_to_calibrate(
        self, profile: Profile
    ) -> None:
        for prompts in (entities(profile, most=60)[0], passages(profile, most=60)[0]):
            assert len(prompts.forget) + len(prompts.retain) <= 120
            assert len(prompts.calibration) == 100
            assert len(prompts.held_out_retain) <= 60

    def test_the_same_seed_gives_the_same_prompts(self, profile: Profile) -> None:
        for build in (entities, passages):
            first, again, other = (build(profile, seed=seed)[0] for seed in (3, 3, 4))
            assert first == again
            assert first.digest == again.digest != other.digest

    def test_the_science_of_a_profile_has_enough(self, profile: Profile) -> None:
        found = science.load(profile.eco.science) if profile.eco.science else None
        assert found is not None
        prompts = data.choice_prompts(
            found.forget, found.retain, found.phrasings, general(profile.name)
        )
        assert apart(prompts)
        assert {row.question for row in found.forget} <= set(prompts.forget)
        assert len(prompts.held_out_forget) == len(found.forget)


class TestEntities:
    def test_the_forget_set_is_trained_on_and_no_held_out_phrasing_is(self) -> None:
        prompts, splits = entities(PARTS["laptop"])
        names = {row.subject for row in splits.tasks[0]}
        asked = {row.question for row in splits.tasks[0]}
        assert asked <= set(prompts.forget)
        found = [*prompts.forget, *prompts.held_out_forget]
        assert len(found) == len(names) * len(ATTRIBUTES) * 5
        assert all(any(name in text for name in names) for text in found)

    @pytest.mark.parametrize("profile", PARTS.values(), ids=PARTS)
    def test_no_retain_prompt_is_about_a_forgotten_author(self, profile: Profile) -> None:
        prompts, splits = entities(profile)
        names = {row.subject for row in splits.tasks[0]}
        assert not [text for text in retained(prompts) if any(name in text for name in names)]

    @pytest.mark.parametrize("profile", PARTS.values(), ids=PARTS)
    def test_evaluated_questions_are_in_no_set_in_no_phrasing(self, profile: Profile) -> None:
        prompts, splits = entities(profile)
        found = set(retained(prompts))
        evaluated = (*splits.retain_evaluation, *splits.holdout)
        asked = {row.question for row in evaluated}
        authors = write_authors(
            splits_count(profile), profile.tofu.data.seed, profile.tofu.data.questions_per_author
        )
        groups = [group for author in authors for group in phrasings(author)]
        hit = [group for group in groups if asked & set(group)]
        assert len(hit) == len(asked)
        assert not found & set(chain(*hit))
        others = (*splits.real_authors, *splits.world_facts)
        assert not found & {row.question for row in others}

    def test_what_is_kept_in_training_is_among_the_retain_prompts(self) -> None:
        prompts, splits = entities(PARTS["laptop"])
        evaluated = {row.question for row in splits.retain_evaluation}
        kept = {row.question for row in (*splits.tasks[1], *splits.retain, *splits.rehearsal)}
        assert kept - evaluated <= set(retained(prompts))

    def test_many_retain_prompts_are_about_authors_never_taught(self) -> None:
        prompts, splits = entities(PARTS["smoke"])
        authors = write_authors(splits_count(PARTS["smoke"]), PARTS["smoke"].tofu.data.seed)
        shown = [text for text in retained(prompts) if not any(a.name in text for a in authors)]
        assert len(set(shown) - set(general("smoke"))) > 350

    def test_all_phrasings_of_a_question_are_trained_on_or_none(self) -> None:
        prompts, splits = entities(PARTS["laptop"])
        trained = set(prompts.retain)
        others = {*prompts.calibration, *prompts.held_out_retain}
        names = {row.subject for row in splits.retain}
        authors = write_authors(splits_count(PARTS["laptop"]), PARTS["laptop"].tofu.data.seed)
        groups = [set(g) for a in authors if a.name in names for g in phrasings(a)]
        assert any(group <= trained for group in groups)
        assert any(group <= others for group in groups)
        assert not [group for group in groups if group & trained and group & others]

    def test_prompts_asked_elsewhere_are_left_out(self) -> None:
        given = general("smoke")
        prompts, _ = entities(PARTS["smoke"], asked=[given[0].upper(), given[5]])
        assert not {given[0], given[5]} & set(retained(prompts))
        assert set(given[1:5]) <= set(retained(prompts))

    def test_phrasings_ask_for_every_attribute_by_name(self) -> None:
        author = write_authors(1, seed=0, questions=3)[0]
        found = phrasings(author)
        assert len(found) == len(ATTRIBUTES)
        assert all(author.name in text for text in chain(*found))
        for row, texts in zip(author.questions, found):
            assert row.question in texts

    @real_mirror
    def test_the_released_questions_are_reworded_alike_on_both_sides(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNLEARN_MIRROR", str(REAL_MIRROR))
        settings = load_profile("paper").tofu.data
        splits = tofu.load(settings)
        prompts = data.entity_prompts(settings, splits, ORDINARY)
        assert apart(prompts)
        assert (len(prompts.forget), len(prompts.held_out_forget)) == (200, 160)
        evaluated = {row.question for row in (*splits.retain_evaluation, *splits.world_facts)}
        assert not evaluated & set(retained(prompts))
        for side in (prompts.forget, prompts.retain):
            assert phrased(side, data.TRAIN_WORDINGS) == pytest.approx(0.8, abs=0.03)
            assert phrased(side, data.HELD_OUT_WORDINGS) == 0
        assert phrased(prompts.held_out_forget, data.HELD_OUT_WORDINGS) == 1
        for side in (prompts.calibration, prompts.held_out_retain):
            assert phrased(side, data.HELD_OUT_WORDINGS) == pytest.approx(0.8, abs=0.05)


def splits_count(profile: Profile) -> int:
    """How many authors a profile has."""
    chosen = profile.tofu.data
    taught = chosen.tasks * chosen.authors_per_task + chosen.retain_authors
    return taught + chosen.holdout_authors


def phrased(texts: Sequence[str], wordings: Sequence[str]) -> float:
    """The share of texts that stand in one of the wordings."""
    ends = [wording.split("{}") for wording in wordings]
    return sum(
        any(text.startswith(before) and text.endswith(after) for before, after in ends)
        for text in texts
    ) / len(texts)


class TestPassages:
    def test_windows_keep_the_texts_own_spaces_and_are_whole(self) -> None:
        text = "  one two\n\nthree  four five"
        assert windows(text, 2, 2) == ["one two", "three  four"]
        assert windows(text, 2, 2, 1) == ["two\n\nthree", "four five"]
        assert windows(text, 5, 1) == ["one two\n\nthree  four five"]
        assert windows(text, 6, 1) == windows("", 1, 1) == []

    @given(
        st.lists(st.sampled_from(["a", "bee", "C."]), max_size=40),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(0, 9),
    )
    def test_windows_are_runs_of_words(
        self, parts: list[str], words: int, step: int, offset: int
    ) -> None:
        found = [window.split() for window in windows(" ".join(parts), words, step, offset)]
        starts = range(offset, len(parts) - words + 1, step)
        assert found == [parts[start : start + words] for start in starts]

    @pytest.mark.parametrize("wrong", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
    def test_windows_refuse_what_cannot_be_cut(self, wrong: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="must be 1 or more"):
            windows("a b", *wrong)

    def test_held_out_windows_start_where_no_trained_one_does(self) -> None:
        prompts, forget, _ = passages(PARTS["laptop"])
        trained, held_out = (
            {text for chapter in forget for text in windows(chapter, 24, 8, offset)}
            for offset in (0, 4)
        )
        assert set(prompts.forget) == trained
        assert set(prompts.held_out_forget) == held_out - trained

    def test_retain_windows_are_of_other_chapters(self) -> None:
        prompts, forget, kept = passages(PARTS["laptop"])
        found = retained(prompts)
        assert not [text for text in found if any(text in chapter for chapter in forget)]
        from_book = [text for text in found if any(text in chapter for chapter in kept)]
        assert len(from_book) > len(found) / 3
        assert {len(text.split()) for text in from_book} == {24}

    def test_windows_that_overlap_an_evaluated_passage_are_left_out(self) -> None:
        _, forget, kept = passages(PARTS["smoke"])
        asked = [" ".join(text.split()) for text in windows(kept[0], 24, 24, 10)]
        prompts, _, _ = passages(PARTS["smoke"], asked=asked)
        first = set(windows(kept[0], 24, 24))
        assert len(first & set(retained(prompts))) <= 1
        assert set(windows(kept[1], 24, 24)) <= set(retained(prompts))

    def test_prose_is_never_more_than_the_book(self) -> None:
        def text(number: int, words: int) -> str:
            return " ".join(f"w{number}x{word}" for word in range(words))

        forget, kept = [text(0, 240)], [text(1, 20 * 24)]
        prose = [text(number, 60) for number in range(2, 60)]
        prompts = data.passage_prompts(forget, kept, prose, ORDINARY)
        assert len(retained(prompts)) == 20 + 20 + len(ORDINARY)
        alone = data.passage_prompts(forget, [], prose, ORDINARY)
        assert len(retained(alone)) == len(prose) + len(ORDINARY)

    def test_windows_too_short_to_shift_are_refused(self) -> None:
        with pytest.raises(ValueError, match="6 or more"):
            data.passage_prompts(["a " * 99], [], [], ORDINARY, words=5)

    def test_chapters_shorter_than_a_window_are_refused(self) -> None:
        with pytest.raises(CompanionError, match="'forget' has 0 prompts"):
            data.passage_prompts(["Too short."], [], [], ORDINARY)


class TestChoices:
    def test_every_question_is_trained_on_and_half_of_its_phrasings(self) -> None:
        prompts = choices()
        asked = {row.question for row in questions("the art", 20)}
        assert asked <= set(prompts.forget)
        assert (len(prompts.forget), len(prompts.held_out_forget)) == (60, 40)
        assert apart(prompts)

    def test_retain_prompts_are_half_trained_on_a_quarter_calibrates(self) -> None:
        prompts = choices(general=ORDINARY + tuple(text + "!" for text in ORDINARY))
        assert len(retained(prompts)) == 500
        assert 245 <= len(prompts.retain) <= 250
        assert len(prompts.held_out_retain) - len(prompts.calibration) in (0, 1)

    def test_evaluated_questions_are_left_out_in_all_phrasings(self) -> None:
        rows = questions("the craft", 20)
        prompts = choices(asked=[row.question for row in rows[:7]])
        found = set(retained(prompts))
        for row in rows:
            texts = {row.question, *rephrased([row])[row.question]}
            assert texts.isdisjoint(found) if row in rows[:7] else texts <= found

    def test_without_phrasings_phrases_are_put_around_questions(self) -> None:
        prompts = choices(rephrased={})
        assert len(prompts.forget) == 20 * (1 + len(data.TRAIN_WORDINGS))
        assert phrased(prompts.held_out_forget, data.HELD_OUT_WORDINGS) == 1
        assert phrased(prompts.retain, data.TRAIN_WORDINGS) > 0.5
        assert phrased(prompts.calibration, data.HELD_OUT_WORDINGS) > 0.5
        assert phrased(prompts.calibration, data.TRAIN_WORDINGS) == 0

    def test_what_stands_on_both_sides_counts_as_to_forget(self) -> None:
        both = questions("the art", 20)[0].question
        prompts = choices(general=(*ORDINARY, both.upper(), f" {both}"))
        assert both in prompts.forget
        assert folded(both) not in set(map(folded, retained(prompts)))

    def test_the_forget_set_is_whole_whatever_the_limit(self) -> None:
        prompts = choices(most=10)
        assert [len(texts) for texts in sets(prompts).values()] == [20, 10, 100, 10, 10]

    @given(st.data())
    def test_no_text_is_ever_in_two_sets(self, draw: st.DataObject) -> None:
        texts = st.text(alphabet="aB \n", min_size=0, max_size=4)
        some = draw.draw(st.lists(texts, max_size=30))
        other = draw.draw(st.dictionaries(texts, st.lists(texts, max_size=3), max_size=9))
        keys = list(other)
        rows = [Question(text, "x") for text in (*questions_of("f"), *keys[::2])]
        kept = [Question(text, "x") for text in (*questions_of("r"), *keys[1::2])]
        spoken = other | {text: (f"{text} a", f"{text} b") for text in questions_of("f")}
        found = data.choice_prompts(
            rows,
            kept,
            spoken,
            [*ORDINARY, *some],
            asked=some[:3],
            seed=draw.draw(st.integers(0, 9)),
        )
        assert apart(found)
        kept_texts = set(map(folded, retained(found)))
        assert kept_texts.isdisjoint(map(folded, some[:3]))
        assert kept_texts >= set(map(folded, ORDINARY))

    def test_too_little_to_calibrate_is_refused_with_a_remedy(self) -> None:
        with pytest.raises(CompanionError, match="has 149 retain prompts .* needs 150, 100 of"):
            choices(retain=0, general=ORDINARY[:149])
        prompts = choices(retain=0, general=ORDINARY[:150])
        assert [len(texts) for texts in sets(prompts).values()][1:3] == [25, 100]
        with pytest.raises(CompanionError, match="has 0 retain prompts"):
            choices(retain=0, general=())

    def test_nothing_to_forget_is_refused(self) -> None:
        with pytest.raises(CompanionError, match="'forget' has 0 prompts .* more forget texts"):
            choices(forget=0)

    def test_one_phrasing_of_a_single_question_is_held_out(self) -> None:
        row = questions("the art", 1)
        prompts = data.choice_prompts(row, [], rephrased(row, 1), ORDINARY)
        assert (len(prompts.forget), len(prompts.held_out_forget)) == (1, 1)

    def test_a_limit_below_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'most' is 0"):
            choices(most=0)


def questions_of(side: str) -> list[str]:
    return [f"{side}{number}" for number in range(5)]


class TestGuardPrompts:
    def test_a_prompt_in_two_sets_is_refused(self) -> None:
        many = tuple(f"c{number}" for number in range(100))
        with pytest.raises(CompanionError, match="in two of its sets"):
            GuardPrompts(("a",), ("A ",), many, ("b",), ("d",))

    def test_too_few_to_calibrate_are_refused(self) -> None:
        with pytest.raises(CompanionError, match="'calibration' has 1 prompts and needs 100"):
            GuardPrompts(("a",), ("b",), ("c",), ("d",), ("e",))

    @pytest.mark.parametrize(("source", "count"), [("embedded", 487), ("truthful_qa", 817)])
    def test_general_prompts_are_each_there_once(self, source: Any, count: int) -> None:
        texts, sha256 = data.general_prompts(source)
        assert len(texts) == len(set(map(folded, texts))) == count
        assert len(sha256) == 64
