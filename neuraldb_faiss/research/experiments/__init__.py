"""The paper's tables and figures on any model and facts: one module an experiment, one row each in `registry`."""
