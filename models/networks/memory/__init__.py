"""What a piece of network keeps for its backward pass: counted, measured, computed again."""
