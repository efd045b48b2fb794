"""Who says what about a release, so that anybody can check it: digests, a Merkle root, signed in-toto statements."""
