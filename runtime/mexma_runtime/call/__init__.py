"""One call: its options, its turn, its texts made ids ahead of the engine, its rows."""
