"""What other runtimes take, made from a bundle."""
