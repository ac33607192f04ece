"""EleutherAI's lm-evaluation-harness on our runs."""
