"""What `make reproduce` does first: open all that a profile names, and note what is there.

`results/<profile>/inputs.json` holds the sha256 of all that decides the results: settings, code,
packages, and the models, data and files that were read. It is written anew when one of them has
changed, whatever the times of files say, or when a run of the results is gone; then Snakemake
executes the notebooks again.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlearn_lib import assets, settings
from unlearn_lib.data import book, harm, people, science, tofu
from unlearn_lib.model_settings import hub_ids
from unlearn_lib.profile import Profile
from unlearn_lib.stored import missing_pictures
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.util import ROOT, CompanionError, expanded, file_sha256, write_text


def _people(data: settings.PeopleData) -> people.PeopleSplits:
    """Deal the people as for a model that knows all of them."""
    rows = people.load_people()[: data.rows]
    return people.deal_people(rows, [True] * len(rows), data)


LOADERS: dict[type, Callable[[Any], Any]] = {
    settings.HarmData: harm.load,
    settings.BookData: book.load,
    settings.AuthorsData: tofu.load,
    settings.PeopleData: _people,
    settings.ScienceData: science.load,
}


def check(profile: Profile) -> None:
    """Refuse a profile that cannot run, before anything is trained; nothing is fetched.

    Raises:
        CompanionError: no GPU where one is asked for; a method that there is not; a model or data
            set that cannot be read, or (offline profiles) is not there; a template that a model
            lacks.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if profile.device == "cuda":
        from unlearn_lib.model.loading import choose_device  # seconds to import

        choose_device(profile.device)
    files: dict[str, str] = {}
    for name in profile.running():
        task = profile.task(name)
        for key, method in task.methods.items():
            find_method(method.uses or key)
        _here(profile, functools.partial(LOADERS[type(task.data)], task.data))
        for model_id in hub_ids(task):
            if not model_id.startswith("embedded/") and model_id != task.evaluation.bleurt:
                _here(profile, functools.partial(assets.find_model, model_id))
        for path in _files(task.data, getattr(task, "judge", None)):
            files[path.name] = file_sha256(path)
    check_templates(profile)
    _note(profile, files | assets.FOUND)


def _here(profile: Profile, find: Callable[[], Any]) -> None:
    """Find something; an online profile fetches later what is not there."""
    try:
        find()
    except assets.AssetMissing:
        if profile.offline:
            raise


def _files(*blocks: Any) -> list[Path]:
    """The reader's own files that blocks of settings name."""
    values = [value for block in blocks if block for _, value in block]
    files = [expanded(value) for value in values if isinstance(value, Path)]
    for path in files:
        if not (ROOT / path).is_file():
            raise CompanionError(f"There is no file {path}, which the profile names; correct it.")
    return [ROOT / path for path in files]


def check_templates(profile: Profile) -> None:
    """Refuse a template that a model's tokenizer does not have; models to be fetched come later."""
    from unlearn_lib.model.loading import TINY, TINY_CONTEXT
    from unlearn_lib.model.tokens import TextEncoder, load_tokenizer

    @functools.cache
    def tokenizer_of(model_id: str) -> Any:
        try:
            return load_tokenizer(assets.find_tokenizer(model_id))
        except assets.AssetMissing:
            return None

    for task in map(profile.task, profile.running()):
        data = task.data
        asks = getattr(data, "questions", True)  # book: only where it has questions
        for model in task.models if asks else ():
            tokenizer, sizes = tokenizer_of(model.id), (data.prompt_tokens, data.answer_tokens)
            named = {"chat": model.chat, "model_id": model.id}
            if tokenizer or model.id == TINY:  # the tiny one's is made when it is
                context = sum(sizes) if tokenizer else TINY_CONTEXT
                TextEncoder(tokenizer, data.template, *sizes, context, **named)


def _note(profile: Profile, found: dict[str, str]) -> None:
    """Write `inputs.json` where its content has changed or runs of the results are gone."""
    package = Path(__file__).parent
    code = [path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    content = {
        "settings": profile.model_dump(mode="json"),
        "code": {path.relative_to(package).as_posix(): file_sha256(path) for path in code},
        "packages": file_sha256(ROOT / "uv.lock"),
        "found": found,
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    path, origin = profile.results / "inputs.json", profile.results / "origin.json"
    runs, before = [], ""
    with contextlib.suppress(OSError, ValueError, KeyError):  # nothing was collected yet
        runs = json.loads(origin.read_text(encoding="utf-8"))["runs"]
    with contextlib.suppress(OSError, ValueError):
        before = path.read_text(encoding="utf-8")
    whole = all((profile.results / "runs" / key).is_dir() for key in runs)
    if text != before or not whole:
        write_text(path, text)
    if missing_pictures(profile.results / "figures"):
        (profile.results / ".figures").unlink(missing_ok=True)  # they are drawn again
