"""The networks: which there are, and how they are built."""
