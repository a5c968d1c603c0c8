"""What runs inside the containers of a network."""
