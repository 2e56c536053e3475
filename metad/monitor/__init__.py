"""What a hub shows of itself: health, Prometheus metrics, a status page."""
