"""What a released dataset is still good for."""
