"""Networks that score pictures, and where their weights come from."""
