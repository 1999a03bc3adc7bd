"""resilient-io."""
