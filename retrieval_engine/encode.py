"""Turns the items of a source into the features of a store."""
