"""How predictions are scored, apart from where they come from."""
