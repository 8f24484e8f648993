"""The command `neuraldb`: parses, calls, prints. Nothing else in the package prints."""
