"""The database inside other people's servers: one module a server, loaded by that server only."""
