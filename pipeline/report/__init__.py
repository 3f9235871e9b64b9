"""Pictures and tables of a model's answers."""
