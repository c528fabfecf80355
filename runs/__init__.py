"""What a run leaves behind, how to launch many, how to compare them."""
