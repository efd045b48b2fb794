"""Scores of an output against its original."""
