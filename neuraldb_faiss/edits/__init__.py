"""Facts become entries of a store: build, add, remove, solve, merge."""
