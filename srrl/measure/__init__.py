"""What a run costs: counted before it runs, and measured on the machine that runs it."""
