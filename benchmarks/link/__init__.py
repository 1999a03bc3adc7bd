"""How long a client needs to notice that the network or the server is gone, measured."""
