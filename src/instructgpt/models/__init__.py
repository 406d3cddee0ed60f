"""The four models of PPO, all of them transformers' own."""
