"""A page that explains a run, or compares several: gathered, drawn, and written apart."""
