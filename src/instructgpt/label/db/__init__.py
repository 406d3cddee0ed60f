"""Database access, models, migrations, backup and audit log of a site."""
