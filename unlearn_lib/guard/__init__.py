"""A guard in front of a model whose weights stay as they are (ECO, Liu et al. 2024)."""
