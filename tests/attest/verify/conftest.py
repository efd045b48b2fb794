"""Fixtures of a signed release, for every test of its verification."""

from tests.support.signed_release import folder_half, public_half, signed_release, signed_releases

__all__ = ["folder_half", "public_half", "signed_release", "signed_releases"]
