"""Is this the release that was signed, whole and unchanged? Asked of ``public/`` alone, or of both halves together."""

from anonymizer.verify.findings import Finding
from anonymizer.verify.handout import check_public

__all__ = ["Finding", "check_public"]
