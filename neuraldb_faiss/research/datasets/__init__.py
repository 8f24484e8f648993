"""Datasets of evaluation cases: one module a dataset, one row each in `registry`."""
