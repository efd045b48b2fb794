"""Intervals, risks, ROC curves and subgroups."""
