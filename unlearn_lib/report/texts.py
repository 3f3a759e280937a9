"""What models said before and after, side by side, from the answers that runs have stored.

A run is found from the tidy table: the row of a model names the run that measured it, and the
first parent of that run is the one that answered. Texts are cut to a few words, addresses and long
numbers masked; what is harmful is folded behind a warning. Of books only the embedded saga is
quoted. Hazardous questions are numbers in the store, so there is no text of them to show.
"""

import functools
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.display import shorten
from unlearn_lib.profiles import Profile
from unlearn_lib.results import stored

SCRIPT = Path(__file__).with_name("texts.js")
"""What lets a reader choose: to be put into any page with `section`, once."""
MOST_PROMPTS = 12
FIRST_SHOWN = 10
WORDS, HARMFUL_WORDS, CHARACTERS = 24, 12, 160
WARNING = "Harmful prompts and what models answered, each cut to a few words. Open to read."
QUOTED_PROSE = ("embedded", "narrative_qa")
"""Prose of which the first words may be shown; other sources are books under copyright."""
BEFORE = ("implanted", "base")
SETS = {"held_out": "harmful prompts, held out", "normal": "normal prompts"}
STAGES = {"base": "base: before anything", "implanted": "implanted: taught, nothing forgotten"}
STAGES |= {"reference": "reference: never taught it"}

Sets = dict[str, tuple[list[str], list[str]]]
"""Set of prompts: the prompts, and what a model said to each."""
Model = tuple[str, str]
"""Stage and method, as in the tidy table."""


@dataclass
class Variant:
    """What all models with one base model and seed said, by set of prompts."""

    label: str
    prompts: dict[str, list[str]] = field(default_factory=dict)
    said: dict[str, dict[Model, list[str]]] = field(default_factory=dict)

    def add(self, who: Model, sets: Sets) -> None:
        """Add what one model said."""
        for name, (prompts, texts) in sets.items():
            self.prompts.setdefault(name, prompts[:MOST_PROMPTS])
            self.said.setdefault(name, {})[who] = texts[:MOST_PROMPTS]


@dataclass(frozen=True)
class Source:
    """Where the texts of one block of the browser come from.

    Attributes:
        title: of the block.
        experiment, scenario: whose rows name the runs.
        parent: whether the answers are those of the first parent of the run in the table.
        read: from the folder of a run to its texts; empty without any.
        warning: the line in front of harmful texts; empty for others.
    """

    title: str
    experiment: str
    scenario: str
    read: Callable[[Path], Sets]
    parent: bool = True
    warning: str = ""


def section(profile: Profile) -> str:
    """The browser of texts as HTML; without stored runs, a line that names the command.

    Raises:
        CompanionError: there are no results of the profile, or some are not whole.
    """
    if profile.own_book:
        return "<p>Of your own book nothing is quoted; its numbers are in the tables.</p>"
    command = f"<code>{html.escape(profile.command)}</code>"
    frame, _, where = stored(profile)
    if where != "this machine":
        return (
            "<p>The reference results hold numbers and no texts. To read what models said, make "
            f"them on this machine: {command}.</p>"
        )
    blocks = [
        _block(number, source, variants, profile)
        for number, source in enumerate(_sources(profile))
        if (variants := list(_variants(profile, source, frame)))
    ]
    if not blocks:
        return f"<p>The runs behind the table are not on this machine; run {command}.</p>"
    return _intro() + "".join(blocks)


def _intro() -> str:
    return (
        f"<p>The first {MOST_PROMPTS} prompts of each set at most, every text cut to "
        f"{WORDS} words, harmful ones to {HARMFUL_WORDS}, addresses and long numbers masked. "
        "An unlearned model says much that is false, of people too. Without JavaScript the first "
        "set and method are shown.</p>"
    )


def _sources(profile: Profile) -> list[Source]:
    harmful, normal = (functools.partial(_answers, name=name) for name in SETS)
    prose = profile.book.data.retain in QUOTED_PROSE
    continued = functools.partial(_continuations, prose=prose)
    found = [
        Source("Harmful prompts", "harmful", "held_out", harmful, warning=WARNING),
        Source("Normal prompts, after unlearning harm", "harmful", "normal", normal),
        Source("The book: prompts continued", "book", "text", continued),
        Source("Fictitious authors", "tofu", "fictitious", _scores),
        Source("Known people", "tofu", "real_world", _scores),
        Source("Guard and others: fictitious authors", "eco", "entities", _scores),
        Source("Guard and weights, attacked", "eco", "robustness", _attacks, parent=False),
    ]
    return [source for source in found if source.experiment in profile.experiments()]


def _variants(profile: Profile, source: Source, frame: pd.DataFrame) -> Iterator[Variant]:
    ours = frame["experiment"].eq(source.experiment) & frame["scenario"].eq(source.scenario)
    for (model, seed), rows in frame[ours].groupby(["model", "seed"], sort=True):
        variant = Variant(f"{str(model).rsplit('/', 1)[-1]}, seed {seed}")
        for (stage, method), some in rows.groupby(["stage", "method"], sort=False):
            folder = _answering(profile, some["run"].iloc[0], source.parent)
            if folder is not None:
                variant.add((str(stage), str(method)), source.read(folder))
        if any(len(said) > 1 for said in variant.said.values()):
            yield variant


def _answering(profile: Profile, run: str, parent: bool) -> Path | None:
    """The folder of the run that answered; None where it is not on this machine."""
    folder = profile.results / "runs" / run
    record = folder / "run.json"
    if not record.is_file():
        return None
    if not parent:
        return folder
    parents = json.loads(record.read_text(encoding="utf-8"))["parents"]
    return profile.results / "runs" / parents[0] if parents else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _answers(folder: Path, name: str) -> Sets:
    """Experiment 1; runs made before prompts were stored along have their numbers instead."""
    record = _read(folder / "answers.json")
    texts = record.get(name, [])
    asked = record.get("asked", {}).get(name) or [f"prompt {i + 1}" for i in range(len(texts))]
    return {SETS[name]: (asked, texts)} if texts else {}


def _scores(folder: Path) -> Sets:
    """Experiments 3 and 4: a set of questions has its answers beside it."""
    return {
        name.replace("_", " "): (part["questions"], part["texts"])
        for name, part in _read(folder / "scores.json").items()
        if part.get("texts")
    }


def _attacks(folder: Path) -> Sets:
    found = _read(folder / "attacks.json")
    return {name: (part["asked"], part["said"]) for name, part in found.items()}


def _continuations(folder: Path, prose: bool) -> Sets:
    """Experiment 2: the short excerpts that a run keeps."""
    found: Sets = {}
    for name, part in _read(folder / "continuations.json").items():
        excerpts = part.get("excerpts", []) if prose or name != "normal" else []
        if excerpts:
            given = [each["continuation"] for each in excerpts]
            texts = ["".join(each) if isinstance(each, list) else each for each in given]
            found[name] = ([each["prompt"] for each in excerpts], texts)
    return found


def _cut(text: str, words: int) -> str:
    """A text as it is shown: a few words, masked, and no word without an end."""
    short = shorten(text, words)
    return short if len(short) <= CHARACTERS else f"{short[:CHARACTERS]} …"


def _block(number: int, source: Source, variants: Sequence[Variant], profile: Profile) -> str:
    words = HARMFUL_WORDS if source.warning else WORDS
    labels = profile.labels(source.experiment)
    data = [_as_json(variant, labels, words) for variant in variants]
    inner = (
        f"<p class='texts-controls'></p>{_table(data[0], source.title)}"
        f"<script type='application/json' class='texts-data'>{_safe_json(data)}</script>"
    )
    if source.warning:
        inner = (
            f"<details class='harmful'><summary>&#9888; {html.escape(source.warning)}</summary>"
            f"{inner}</details>"
        )
    title = f"<h3 id='texts-{number}'>{html.escape(source.title)}</h3>"
    return f"<section class='texts' aria-labelledby='texts-{number}'>{title}{inner}</section>"


def _as_json(variant: Variant, labels: Mapping[str, str], words: int) -> dict[str, Any]:
    """A variant as the script reads it: for each set prompts, what was said before, and after."""
    sets = []
    for name, said in variant.said.items():
        cut = {who: [_cut(text, words) or "(nothing)" for text in said[who]] for who in said}
        first = min(said, key=_rank)
        order = [*labels, *(method for _, method in said if method not in labels)]
        rest = sorted((who for who in said if who != first), key=lambda who: order.index(who[1]))
        after = [{"label": _label(who, labels), "texts": cut[who]} for who in rest]
        if after:
            prompts = [_cut(text, words) for text in variant.prompts[name]]
            found = {"name": name, "prompts": prompts, "first": _label(first, labels)}
            sets.append(found | {"before": cut[first], "after": after})
    return {"label": variant.label, "sets": sets}


def _rank(who: Model) -> int:
    """What counts as before: what was implanted, else the base model, else anything."""
    stage = who[0]
    return BEFORE.index(stage) if stage in BEFORE else len(BEFORE)


def _label(who: Model, labels: Mapping[str, str]) -> str:
    stage, method = who
    return STAGES.get(stage) or labels.get(method, method)


def _safe_json(content: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _table(data: Mapping[str, Any], title: str) -> str:
    """The first set and method, which is what is seen without JavaScript."""
    found = data["sets"][0]
    after = found["after"][0]
    rows = zip(found["prompts"], found["before"], after["texts"], strict=False)
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
        for row in list(rows)[:FIRST_SHOWN]
    )
    caption = f"{data['label']}: {found['name']}"
    heads = "".join(
        f"<th scope='col'>{html.escape(text)}</th>"
        for text in ("prompt", found["first"], after["label"])
    )
    region = f"<div class='scroll' role='region' aria-label='{html.escape(title)}' tabindex='0'>"
    return (
        f"{region}<table class='texts-table'><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>"
    )
