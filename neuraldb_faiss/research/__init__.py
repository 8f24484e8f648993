"""The laboratory: evaluation, experiments, baselines and benchmarks. Only `cli.commands` imports it."""
