"""Changes of a database: build, add, remove, solve, merge."""
