"""Fixture of a small release with its reports."""

from tests.support.reports import made

__all__ = ["made"]
