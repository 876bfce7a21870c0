"""The platform: pages, API, data, decisions. It imports neither the workers nor torch."""
