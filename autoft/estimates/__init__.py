"""What a configuration will need, known before it is trained: memory, and the size of its files."""
