"""Limits of what goes into a prompt, by default."""

MAX_FACTS = 8
MAX_TOKENS = 400
