"""An audit: attacks with their baselines, bounds and controls."""
