"""The labelers' site: people write demonstrations, rate and rank, and nothing they do is lost. No torch in here."""
