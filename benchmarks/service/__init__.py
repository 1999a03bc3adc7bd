"""What seeing costs: metrics beside the calls, and the start of a probe."""
