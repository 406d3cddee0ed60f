"""What keeps the site and its people safe: passwords, tokens, headers, forged requests, rates."""
