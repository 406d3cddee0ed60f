"""Finished models on the Hugging Face hub."""
