"""Answers of a model with a database attached."""
