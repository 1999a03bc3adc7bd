"""The command `resilient-io`."""
