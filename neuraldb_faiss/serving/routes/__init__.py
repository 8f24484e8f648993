"""Routes of the server, by resource."""
