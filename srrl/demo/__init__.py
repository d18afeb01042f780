"""A page that draws with a checkpoint: what it asks for, who draws, and the server of both."""
