"""Load causal language models, turn text into packed rows, generate answers and score them."""
