"""Measuring an edited model: CounterFact, zsRE, general ability, and comparisons with intervals.

The modules load torch, scipy and scikit-learn, so they are imported by name where they are used.
"""
