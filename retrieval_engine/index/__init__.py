"""Approximate and exact top-k over stored features."""
