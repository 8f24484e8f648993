"""Forward passes of the solver: full, padded and packed."""
