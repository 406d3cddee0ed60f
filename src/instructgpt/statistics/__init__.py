"""The science of labels: how far labelers agree, which model wins, how sure both are. Arrays only, no torch."""
