"""Verification of a release's public half against its signed statement."""

from anonymizer.attest.verify.findings import Finding
from anonymizer.attest.verify.public import check_public

__all__ = ["Finding", "check_public"]
