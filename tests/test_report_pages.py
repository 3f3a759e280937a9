"""The report's pages: notebooks, texts before and after, data cards, reproduction notes."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import tidy
from unlearn_lib.metrics.tidy import Row, to_frame
from unlearn_lib.profiles import ROOT, Profile, load_profile
from unlearn_lib.report import cards, notebooks, notes, texts

REFERENCE = ROOT / "results" / "reference" / "laptop" / "metrics.csv"
PIXEL = base64.b64encode(b"\x89PNG not really").decode()
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|mnt|Users)/")
FETCHED = re.compile(
    r"""\b(?:src|data|poster|action)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE
)
MODEL = "embedded/tiny-opt"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Profile smoke with its results in a folder of their own."""
    monkeypatch.setattr(Profile, "results", property(lambda self: tmp_path / "results"))
    return load_profile("smoke")


@pytest.fixture
def one_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one notebook only, so that the others need not be rendered."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / f"{TestNotebooks.NAME}.ipynb", folder)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)


def images_of(body: str) -> list[Any]:
    return BeautifulSoup(body, "html.parser").find_all("img")


@pytest.mark.usefixtures("one_notebook")
class TestNotebooks:
    NAME = "01_harmful_unlearning"

    def page(self, profile: Profile, *cells: Any) -> Any:
        """The page of an executed notebook of these cells."""
        folder = profile.results / "notebooks"
        folder.mkdir(parents=True)
        notebook = v4.new_notebook(cells=list(cells))
        notebook.metadata["papermill"] = {"output_path": "/home/somebody/secret/out.ipynb"}
        nbformat.write(notebook, folder / f"{self.NAME}__tiny-opt__s3.ipynb")
        return next(page for page in notebooks.pages(profile) if page.name.startswith(self.NAME))

    @staticmethod
    def output(**data: str) -> Any:
        found = {name.replace("_", "/"): content for name, content in data.items()}
        return v4.new_output("display_data", data=found)

    def test_title_note_and_text(self, profile: Profile) -> None:
        page = self.page(profile, v4.new_markdown_cell("# 1 · Parrots\n\nThey *talk*."))
        assert (page.name, page.title) == (f"{self.NAME}__tiny-opt__s3", "1 · Parrots")
        assert "model tiny-opt, seed 3" in page.note
        assert "<em>talk</em>" in page.body and "<h1" not in page.body

    def test_nothing_runs_and_nothing_is_fetched(self, profile: Profile) -> None:
        page = self.page(
            profile,
            v4.new_markdown_cell("![a](http://elsewhere.example/a.png) <script>alert(1)</script>"),
            v4.new_code_cell(
                "1",
                outputs=[
                    self.output(text_html="<style>td{}</style><b onclick='x()'>bold</b>"),
                    self.output(text_html="<iframe src='//elsewhere.example'></iframe>"),
                    self.output(text_html="<a href='javascript:x()'>link</a>"),
                    self.output(image_svg="<svg onload='x()'></svg>"),
                    self.output(**{"application/javascript": "x()"}),
                ],
            ),
        )
        assert "<b>bold</b>" in page.body
        for word in ("<script", "<style", "<iframe", "onclick", "onload", "javascript:", "td{}"):
            assert word not in page.body, word
        assert not FETCHED.search(page.body) and "elsewhere" not in page.body

    def test_progress_bars_and_widgets_are_left_out(self, profile: Profile) -> None:
        widget = self.output(text_plain="0%| bar")
        widget.data["application/vnd.jupyter.widget-view+json"] = {"model_id": "a"}
        bar = v4.new_output("stream", name="stderr", text="Executing: 50%")
        said = v4.new_output("stream", name="stdout", text="said aloud")
        body = self.page(profile, v4.new_code_cell("1", outputs=[widget, bar, said])).body
        assert "0%" not in body and "Executing" not in body and "said aloud" in body

    def test_no_path_of_a_machine_is_left(self, profile: Profile) -> None:
        page = self.page(
            profile,
            v4.new_code_cell(
                'book = "/home/somebody/books/mine.txt"',
                outputs=[
                    v4.new_output("stream", name="stdout", text=f"{ROOT}/results/x.csv\n"),
                    self.output(text_html="<td>/tmp/abc/def.json</td>"),
                ],
            ),
        )
        text = BeautifulSoup(page.body, "html.parser").get_text()
        assert not MACHINE.search(page.body) and "somebody" not in page.body
        assert "…/mine.txt" in text and "results/x.csv" in text and "…/def.json" in text

    def test_pictures_say_what_they_show(self, profile: Profile) -> None:
        picture = self.output(image_png=PIXEL)
        page = self.page(
            profile,
            v4.new_markdown_cell("# Parrots"),
            v4.new_markdown_cell("## Wings\n\nHow they grow. And more."),
            v4.new_code_cell("1", outputs=[picture, picture]),
            v4.new_markdown_cell("## Beaks"),
            v4.new_code_cell("2", outputs=[picture]),
        )
        assert [image["alt"] for image in images_of(page.body)] == [
            "Wings, picture 1: How they grow.",
            "Wings, picture 2: How they grow.",
            "Beaks, picture 1",
        ]

    def test_a_formula_is_a_picture_with_its_tex(self, profile: Profile) -> None:
        page = self.page(profile, v4.new_markdown_cell("# A\n\n$$\\theta < \\epsilon_1.$$"))
        (image,) = images_of(page.body)
        assert image["src"].startswith("data:image/png;base64,") and "$$" not in page.body
        assert image["alt"] == "Formula: \\theta < \\epsilon_1."

    def test_long_code_is_folded(self, profile: Profile) -> None:
        long = "\n".join(f"a = {i}" for i in range(notebooks.FOLDED_LINES + 1))
        page = self.page(profile, v4.new_code_cell("b = 1"), v4.new_code_cell(long))
        (folded,) = BeautifulSoup(page.body, "html.parser").select("details.code")
        assert "a = 3" in folded.get_text() and "b = 1" not in folded.get_text()

    def test_harmful_answers_stay_folded(self, profile: Profile) -> None:
        table = (
            "<details><summary><b>Open to read</b></summary><table border='1'></table></details>"
        )
        page = self.page(profile, v4.new_code_cell("1", outputs=[self.output(text_html=table)]))
        found = BeautifulSoup(page.body, "html.parser").find("details")
        assert found is not None and found.find("table") and not found.has_attr("open")

    def test_not_executed_is_said_with_the_command(self, profile: Profile) -> None:
        folder = profile.results / "notebooks"
        folder.mkdir(parents=True)
        nbformat.write(v4.new_notebook(), folder / f"{self.NAME}__tiny-opt__s1.failed.ipynb")
        (page,) = notebooks.pages(profile)
        assert page.name == self.NAME and "make reproduce PROFILE=smoke" in page.note
        assert not FETCHED.search(page.body) and not MACHINE.search(page.body)

    def test_highlighted_code_can_be_read(self) -> None:
        def luminance(colour: str) -> float:
            parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
            linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        last = dict(
            re.findall(r"\.highlight (\.\w+)[^{}]*\{ color: #([0-9A-Fa-f]+)", notebooks.style())
        )
        last |= dict.fromkeys((".ow", ".nd"), "7a1fc0")
        for kind, colour in last.items():
            wide = colour if len(colour) == 6 else "".join(2 * letter for letter in colour)
            contrast = (luminance("f6f6f8") + 0.05) / (luminance(wide) + 0.05)
            assert kind in (".w", ".nl") or contrast >= 4.5, (kind, colour)


class Store:
    """A run store in which models have answered, and the table that names the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[Row]()

    def add(
        self, place: tuple[str, str], stage: str, method: str, file: str, content: Any,
        metric: str = "degenerate_share", parent: bool = True,
    ) -> None:  # fmt: skip
        key = f"{len(self.rows):064x}"
        answered = f"{len(self.rows):063x}a" if parent else key
        for name, parents in ((key, [answered] if parent else []), (answered, [])):
            run = self.folder / "runs" / name
            run.mkdir(parents=True, exist_ok=True)
            if name == key:
                (run / "run.json").write_text(json.dumps({"parents": parents}))
        (self.folder / "runs" / answered / file).write_text(json.dumps(content))
        self.rows.append(
            Row(place[0], place[1], MODEL, method, stage, "test", 1, metric, 0, 0, 0, 1, key)
        )

    def finish(self) -> None:
        tidy.write(self.folder / "metrics.csv", to_frame(self.rows))
        (self.folder / "metrics.json").write_text("{}")


LONG = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth secret end"
)


@pytest.fixture
def store(profile: Profile) -> Store:
    found = Store(profile.results)
    for stage, method, said in (("unlearned", "ga", "sorry"), ("base", "none", LONG)):
        record = {"held_out": [said] * 14, "normal": ["</script><b>& hello"] * 14}
        found.add(("harmful", "held_out"), stage, method, "answers.json", record)
        found.add(("harmful", "normal"), stage, method, "answers.json", record)
    for stage, method in (
        ("unlearned", "idk_ap"), ("unlearned", "ga_gd"), ("base", "none"), ("implanted", "none"),
    ):  # fmt: skip
        asked = ["Who?", "Call +49 170 1234567"]
        both = {"questions": asked, "texts": [f"{stage} {method}", ""]}
        found.add(
            ("tofu", "fictitious"), stage, method, "scores.json",
            {"forget": both, "real_authors": both, "holdout": {"questions": ["no"]}},
        )  # fmt: skip
        prose = {"excerpts": [{"prompt": "prose begins", "continuation": "prose goes on"}]}
        saga = {"excerpts": [{"prompt": "the wall", "continuation": ["a ", "b", " c"]}]}
        found.add(
            ("book", "text"), stage, "arora" if stage == "unlearned" else method,
            "continuations.json", {"forget": saga, "normal": prose},
        )  # fmt: skip
    for method, stage in (("eco", "guarded"), ("none", "implanted")):
        found.add(
            ("eco", "robustness"), stage, method, "attacks.json",
            {"typos": {"asked": ["Whoo?"], "said": [method]}}, "leak_share", parent=False,
        )  # fmt: skip
    found.finish()
    return found


def blocks_of(section: str) -> dict[str, Any]:
    """Heading to block, of the browser of texts."""
    soup = BeautifulSoup(section, "html.parser")
    return {block.h3.get_text(): block for block in soup.select("section.texts")}  # type: ignore[union-attr]


def data_of(block: Any) -> Any:
    return json.loads(block.select_one("script.texts-data").string)


class TestTexts:
    def test_harmful_texts_are_folded_and_cut(self, profile: Profile, store: Store) -> None:
        section = texts.section(profile)
        block = blocks_of(section)["Harmful prompts"]
        folded = block.find("details")
        assert not folded.has_attr("open") and "Open to read" in folded.summary.get_text()
        assert not [
            part for part in block.find_all(["table", "script"]) if folded not in part.parents
        ]
        assert "twelfth …" in section and "secret" not in section

    def test_every_text_is_short_and_masked(self, profile: Profile, store: Store) -> None:
        section = texts.section(profile)
        assert "1234567" not in section and "[masked]" in section
        assert texts._cut("a" * 900, 24) == "a" * texts.CHARACTERS + " …"

    def test_nothing_in_a_text_is_markup(self, profile: Profile, store: Store) -> None:
        block = blocks_of(texts.section(profile))["Normal prompts, after unlearning harm"]
        assert block.find("b") is None
        assert data_of(block)[0]["sets"][0]["before"][0] == "</script><b>& hello"

    def test_few_rows_without_the_script_and_a_few_more_with_it(
        self, profile: Profile, store: Store
    ) -> None:
        block = blocks_of(texts.section(profile))["Harmful prompts"]
        assert len(block.tbody.find_all("tr")) == texts.FIRST_SHOWN
        found = data_of(block)[0]["sets"][0]
        assert len(found["prompts"]) == len(found["before"]) == texts.MOST_PROMPTS
        assert found["prompts"][:2] == ["prompt 1", "prompt 2"]

    def test_before_is_what_was_implanted_and_methods_are_in_order(
        self, profile: Profile, store: Store
    ) -> None:
        forget, authors = data_of(blocks_of(texts.section(profile))["Fictitious authors"])[0][
            "sets"
        ]
        assert (forget["name"], authors["name"]) == ("forget", "real authors")
        assert forget["first"].startswith("implanted") and forget["before"][0] == "implanted none"
        assert [after["label"] for after in forget["after"]] == [
            "GA + GD", "IDK + AP", "base: before anything",
        ]  # fmt: skip
        assert forget["after"][0]["texts"] == ["unlearned ga_gd", "(nothing)"]

    def test_attacks_are_read_from_the_run_itself(self, profile: Profile, store: Store) -> None:
        (found,) = data_of(blocks_of(texts.section(profile))["Guard and weights, attacked"])[0][
            "sets"
        ]
        assert found["name"] == "typos" and found["before"] == ["none"]
        assert found["after"] == [{"label": "ECO (guard)", "texts": ["eco"]}]

    def test_of_books_only_the_saga_is_quoted(self, profile: Profile, store: Store) -> None:
        section = texts.section(profile)
        assert "the wall" in section and "prose goes on" in section
        bookish = profile.book.data.model_copy(update={"retain": "bookcorpus"})
        fetched = profile.model_copy(
            update={"book": profile.book.model_copy(update={"data": bookish})}
        )
        assert "the wall" in texts.section(fetched) and "prose" not in texts.section(fetched)
        own = bookish.model_copy(update={"file": Path("mine.txt")})
        mine = profile.model_copy(update={"book": profile.book.model_copy(update={"data": own})})
        assert "Of your own book nothing is quoted" in texts.section(mine)
        assert "<table" not in texts.section(mine)

    def test_controls_are_named_and_the_table_has_heads(
        self, profile: Profile, store: Store
    ) -> None:
        for block in blocks_of(texts.section(profile)).values():
            assert block.find(id=block["aria-labelledby"]) is block.h3
            assert block.select_one("table.texts-table caption").get_text()
            assert len(block.select("th[scope=col]")) == 3 and block.select_one("p.texts-controls")

    def test_prompts_that_were_stored_are_shown(self, profile: Profile) -> None:
        found = Store(profile.results)
        for stage, method in (("base", "none"), ("unlearned", "ga")):
            record = {"normal": ["said"], "asked": {"normal": ["What is asked?"]}}
            found.add(("harmful", "normal"), stage, method, "answers.json", record)
        found.finish()
        assert "What is asked?" in texts.section(profile)

    def test_without_runs_the_command_is_named(
        self, profile: Profile, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for run in (profile.results / "runs").glob("*/run.json"):
            run.unlink()
        assert "not on this machine; run <code>make reproduce PROFILE=smoke" in texts.section(
            profile
        )
        (profile.results / "metrics.csv").unlink()
        with pytest.raises(CompanionError, match="no results of profile smoke; run `make"):
            texts.section(profile)
        rows = tidy.read(REFERENCE)
        monkeypatch.setattr(texts, "stored", lambda profile: (rows, {}, "reference results"))
        assert "hold numbers and no texts" in texts.section(profile)

    def test_the_script_puts_texts_in_as_text(self) -> None:
        script = texts.SCRIPT.read_text(encoding="utf-8")
        assert "innerHTML" not in script and "textContent" in script
        assert not re.search(r"https?://|fetch\(|import\(|XMLHttpRequest|eval\(", script)


class TestCards:
    found = cards.pages()

    def test_every_card_is_a_page(self) -> None:
        names = {path.stem for path in (ROOT / "data_cards").glob("*.md")}
        assert {page.name for page in self.found} == {cards.page_name(name) for name in names}
        assert len(self.found) == len(names)

    @pytest.mark.parametrize("page", found, ids=lambda page: page.name)
    def test_header_and_text_are_shown(self, page: Any) -> None:
        soup = BeautifulSoup(page.body, "html.parser")
        heads = {head.get_text() for head in soup.select("table.card-facts th")}
        assert {"licence", "from", "used in", "fields", "file"} <= heads
        assert "Licence" in [each.get_text() for each in soup.find_all("h2")]
        assert (
            page.title and not soup.find("h1") and "---" not in soup.get_text().split("sha256")[0]
        )
        assert not FETCHED.search(page.body) and not MACHINE.search(page.body)

    def test_hashes_are_those_of_the_header(self) -> None:
        page = next(page for page in self.found if page.name == "card_saga")
        header, _ = cards.read(ROOT / "data_cards" / "saga.md")
        assert header["companion"]["files"][0]["sha256"] in page.body
        assert header["pretty_name"] == page.title

    def test_markup_in_a_card_is_shown_and_not_obeyed(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.md"
        text = (ROOT / "data_cards" / "saga.md").read_text(encoding="utf-8")
        path.write_text(f"{text}\n<script>x()</script> <img src='//elsewhere.example'>\n")
        body = cards._page(path).body
        assert "<script" not in body and "&lt;script&gt;" in body and "<img" not in body

    def test_a_card_without_its_header_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "bare.md"
        path.write_text("# Bare\n")
        with pytest.raises(CompanionError, match="bare.md lacks pretty_name, license, companion"):
            cards.read(path)

    def test_summary_has_a_row_a_card(self) -> None:
        table = cards.summary()
        assert len(table) == len(self.found) and not table.eq("").any(axis=None)
        saga = table[table["page"].eq("card_saga.html")].iloc[0]
        header, _ = cards.read(ROOT / "data_cards" / "saga.md")
        assert saga["rows"] == str(header["companion"]["files"][0]["rows"])
        assert saga["from"].startswith("shipped")

    def test_every_card_is_of_an_experiment(self) -> None:
        used = {name for names in cards.USED_IN.values() for name in names.split()}
        assert used == {path.stem for path in (ROOT / "data_cards").glob("*.md")}


class TestNotes:
    found = notes.read_differences()
    references = [
        (each.id, reference)
        for each in found
        if not isinstance(each.matters, str)
        for reference in each.matters
    ]

    def test_every_paper_is_there_and_no_name_twice(self) -> None:
        for name in ("Arora", "Liu", "Yuan"):
            assert sum(each.paper.startswith(name) for each in self.found) >= 8
        assert len({(each.paper, each.topic) for each in self.found}) == len(self.found)

    def test_every_difference_has_all_keys(self) -> None:
        text = (ROOT / "notebooks" / "differences.yaml").read_text(encoding="utf-8")
        for key in notes.Difference.model_fields:
            assert len(re.findall(rf"^(?:- |  ){key}:", text, re.M)) == len(self.found), key
        assert not MACHINE.search(text) and "http" not in text

    @pytest.mark.parametrize("name, reference", references, ids=lambda each: str(each)[:40])
    def test_references_are_rows_of_the_reference_results(
        self, name: str, reference: notes.Reference
    ) -> None:
        lines = notes.measured(reference, tidy.read(REFERENCE))
        assert len(lines) == 1 and reference.says in lines[0], f"{name}: not in the table"

    def test_faults_of_the_released_code_are_all_measured(self) -> None:
        methods = {reference.method for _, reference in self.references}
        assert {"released", "empty_labels", "book_mismatch", "self_kl"} <= methods

    def test_a_difference_is_of_the_two_values(self) -> None:
        rows = [
            Row("book", "text", "a/b", method, "unlearned", "forget", 1, "verbatim_share",
                value, value - 0.1, value + 0.1, 16, "r")
            for method, value in (("released", 0.7), ("arora", 0.2))
        ]  # fmt: skip
        reference = next(each for name, each in self.references if name == "book_three_faults")
        (line,) = notes.measured(reference, to_frame(rows))
        assert "0.70 [0.60, 0.80] against 0.20 [0.10, 0.30], difference 0.50 [0.30, 0.70]" in line
        assert "n 16, 1 seed" in line

    def test_what_a_profile_lacks_is_said(self) -> None:
        section = notes.section(tidy.read(REFERENCE).iloc[:0], "smoke")
        assert section.count("not measured in profile smoke") == len(self.references)

    def test_the_section_folds_every_difference(self) -> None:
        soup = BeautifulSoup(notes.section(tidy.read(REFERENCE), "laptop"), "html.parser")
        folded = soup.select("details.difference")
        assert len(folded) == len(self.found)
        for each, part in zip(self.found, folded, strict=True):
            assert part["id"] == f"note-{each.id}" and len(part.select("dt")) == 4

    def test_text_is_escaped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        evil = self.found[0].model_copy(update={"ours": "<b>bold</b>", "topic": "a & <i>"})
        monkeypatch.setattr(notes, "read_differences", lambda: [evil])
        section = notes.section(tidy.read(REFERENCE), "laptop")
        assert "<b>" not in section and "<i>" not in section and "a &amp; &lt;i&gt;" in section

    @pytest.mark.parametrize(
        "old, new, message",
        [
            ("ours:", "our:", "key 'our'.*did you mean 'ours'"),
            ("  metric:", "  metrik:", "key 'metrik'.*did you mean 'metric'"),
            ("against: {method: none", "against: {methud: none", "did you mean 'method'"),
            ("id: arora_rows_used", "id: arora_stop_rule", "'arora_stop_rule' stands twice"),
            ("paper_says: 1000 iterations.\n", "\n", "key 'paper_says'"),
        ],
    )
    def test_a_wrong_key_is_refused(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        text = (ROOT / "notebooks" / "differences.yaml").read_text(encoding="utf-8")
        head, mark, rest = text.partition("- id:")
        path = tmp_path / "differences.yaml"
        path.write_text(head + (mark + rest).replace(old, new, 1), encoding="utf-8")
        with pytest.raises(CompanionError, match=message):
            notes.read_differences(path)


def test_the_pages_need_no_torch() -> None:
    names = "cards, notebooks, notes, texts"
    heavy = "{'torch', 'transformers', 'datasets'} & set(sys.modules)"
    code = f"import sys; from unlearn_lib.report import {names}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.slow
def test_the_committed_notebooks_are_whole_pages(profile: Profile) -> None:
    found = notebooks.pages(profile)
    stems = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert [page.name for page in found] == stems
    for page in found:
        assert page.title and not FETCHED.search(page.body) and not MACHINE.search(page.body)
        assert all(image.get("alt") for image in images_of(page.body))
