"""From records to tokens: hygiene, importers, tokenization, packing, pretraining text."""
