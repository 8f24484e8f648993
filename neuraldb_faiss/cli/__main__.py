"""`python -m neuraldb_faiss.cli`: the command, where it is not on the path."""

from neuraldb_faiss.cli.main import main

main()
