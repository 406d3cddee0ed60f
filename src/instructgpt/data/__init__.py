"""From records to tokens: prompt hygiene, importers, rendering, batches, pretraining text."""
