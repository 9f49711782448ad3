"""What the machine has, what a model needs of it, where its parts go, and how fast that should be."""
