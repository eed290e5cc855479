"""Ordered, bounded maps over threads or processes; they know nothing of embeddings."""
