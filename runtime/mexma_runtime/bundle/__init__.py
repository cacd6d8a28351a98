"""What lies on disk: bundle.json, the files of a bundle, and what local/ keeps for one machine."""
