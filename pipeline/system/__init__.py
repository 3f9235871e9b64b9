"""What every room needs of the system: files and locks, processes, memory, devices, texts, code."""
