"""Objectives of residuals: one module each."""
