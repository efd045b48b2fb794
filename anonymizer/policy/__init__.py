"""Gates on records and releases, and calibrated levels."""
