"""Pictures and records, in and out."""
