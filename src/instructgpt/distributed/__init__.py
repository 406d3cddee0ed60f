"""Communication between ranks, process launch, and attribution of failures."""
