"""Bytes and rows at rest: files, object stores, locks, sorted merges, Parquet, the layout of a release."""
