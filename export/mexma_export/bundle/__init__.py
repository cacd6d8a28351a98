"""An export: weights, graphs, their judgement, and one rename that publishes them."""
