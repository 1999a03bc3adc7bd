"""The stage of the scenes: networks, servers, both services, and who looks at them."""
