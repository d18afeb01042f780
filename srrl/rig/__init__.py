"""RL-RIG (arXiv 2602.19974): pictures of scene graphs, checked and edited by a VLM."""
