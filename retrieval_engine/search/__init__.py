"""Questions answered from an index or straight from a store."""
