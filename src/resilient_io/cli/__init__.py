"""The command `resilient-io`: diagnose connections, probe services, check Kubernetes manifests."""
