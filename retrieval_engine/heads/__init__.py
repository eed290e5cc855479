"""Small torch modules on stored features."""
