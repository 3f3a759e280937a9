"""The tasks: what there is to forget and to keep, and what is asked afterwards."""

from unlearn_lib.tasks.base import BASE, RETAIN_MODEL, TARGET, Task, behind
from unlearn_lib.tasks.book import Book
from unlearn_lib.tasks.harm import Harm
from unlearn_lib.tasks.questions import Authors, Continual, People
from unlearn_lib.tasks.science import Science

TASK_CLASSES: dict[str, type[Task]] = {
    "harm": Harm,
    "book": Book,
    "authors": Authors,
    "continual": Continual,
    "people": People,
    "science": Science,
}

__all__ = ["BASE", "RETAIN_MODEL", "TARGET", "TASK_CLASSES", "Task", "behind"]
