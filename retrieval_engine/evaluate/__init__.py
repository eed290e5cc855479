"""Exact Recall@K and the other figures that may be published."""
