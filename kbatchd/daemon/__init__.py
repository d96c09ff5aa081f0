"""The supervisor: forks the workers and watches them."""
