"""Export a sentence encoder: a checkpoint in, a bundle out."""
