"""Fixtures of a signed release, for the verification of both halves."""

from tests.support.signed_release import signed_release, signed_releases

__all__ = ["signed_release", "signed_releases"]
