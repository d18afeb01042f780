"""What is wrong here: the machine, and what a config's run needs. Nothing is trained or fetched."""
