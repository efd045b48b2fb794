"""Rules on what may be released: gates on records and releases, risk figures, public scores, calibrated levels."""
