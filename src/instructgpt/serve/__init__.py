"""An OpenAI-compatible endpoint over our own decoder, or in front of another server."""
