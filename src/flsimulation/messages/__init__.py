"""The messages between the server and the clients, as Flower's records."""
