"""Signed in-toto statements about a release, and their verification: digests, a Merkle root, approvals, revocations."""
