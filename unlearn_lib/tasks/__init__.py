"""The tasks: what there is to forget and to keep, and what is asked afterwards."""

from unlearn_lib.tasks.base import BASE, RETAIN_MODEL, TARGET, Task, behind
from unlearn_lib.tasks.book import Book
from unlearn_lib.tasks.harm import Harm
from unlearn_lib.tasks.questions import Authors, Continual, People
from unlearn_lib.tasks.science import Science, Subjects

CLASSES: tuple[type[Task], ...] = (Harm, Book, Authors, Continual, People, Science, Subjects)
TASK_CLASSES = {each.name: each for each in CLASSES}

__all__ = ["BASE", "RETAIN_MODEL", "TARGET", "TASK_CLASSES", "Task", "behind"]
