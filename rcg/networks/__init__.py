"""Networks that generate representations."""
