"""Figures from the item table, by small specs; nothing here trains or imports torch.

    draw("book_methods", items, labels)

`figures_of` says which figures some items suffice for; `write_all` writes them.
"""

from unlearn_lib.figures.kinds import curves_of_training
from unlearn_lib.figures.specs import FIGURES, draw, figures_of, write_all

__all__ = ["FIGURES", "curves_of_training", "draw", "figures_of", "write_all"]
