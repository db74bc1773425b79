"""Models, endpoint configurations and endpoints, served by model servers of their own."""
