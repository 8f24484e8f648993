"""Objectives for residuals: one module each."""
