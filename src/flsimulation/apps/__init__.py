"""The Flower apps: what runs on the server and on every client."""
