"""The stage of the scenes in containers: networks, servers, both services, and who looks at them."""
