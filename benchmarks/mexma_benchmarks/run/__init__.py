"""A run: checkpoints, subjects in processes of their own, and what each is asked."""
