"""The server's part in a round: Flower's strategies, the round loop, the exchange of messages."""
