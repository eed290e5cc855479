"""Captions written from stored image states."""
