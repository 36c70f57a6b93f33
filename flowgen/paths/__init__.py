"""Paths between the two ends of a pair."""
