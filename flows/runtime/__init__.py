"""Prefect: servers, task runners, dispatch, progress."""
