"""Prefect flows and the command line: thin, over functions that work without Prefect."""
