"""Boomerang local sampling for image datasets, and the releases that are made with it."""
