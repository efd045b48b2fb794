"""Is this the release that was signed, whole and unchanged? Asked of ``public/`` alone, or of both halves together."""

from anonymizer.attest.verify.findings import Finding
from anonymizer.attest.verify.public import check_public

__all__ = ["Finding", "check_public"]
