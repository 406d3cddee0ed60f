"""What the site sends to others: webhooks and e-mail, through an outbox in the database."""
