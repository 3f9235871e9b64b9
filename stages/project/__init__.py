"""What a stage knows of the project that it runs in: its git repository and its DVC cache."""
