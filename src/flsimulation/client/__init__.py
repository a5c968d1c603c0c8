"""The client's side: its data and model, and its tasks in a round."""
