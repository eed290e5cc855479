"""HDF5 shards of features, whole or absent; see FORMAT.md."""
