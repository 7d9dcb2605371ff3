"""Programs of sequences, and simulated sequences whose log p(x) is known by other means."""
