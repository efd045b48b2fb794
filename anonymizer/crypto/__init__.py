"""The custodian's key, signatures and encryption."""
