"""The server's side of a round: Flower's strategies, the round loop, the exchange of messages."""
