"""Fixtures of a signed release, for the command that verifies it."""

from tests.support.signed_release import folder_half, public_half, signed_release, signed_releases

__all__ = ["folder_half", "public_half", "signed_release", "signed_releases"]
