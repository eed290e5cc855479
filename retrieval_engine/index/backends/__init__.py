"""One file per index library; its name is the backend's name."""
