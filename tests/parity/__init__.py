"""The checker of ports, and its command."""
