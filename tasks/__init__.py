"""What the application does later. `taskiq worker broker:broker tasks` imports this package and so finds every task."""

from tasks import articles, documents, mail, maintenance, users

__all__ = ["articles", "documents", "mail", "maintenance", "users"]
