"""Unlearning losses, the methods that sum them, the steps they see, and the trainer."""
