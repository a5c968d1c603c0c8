"""What runs at a client: its data and model, and its part in a round."""
