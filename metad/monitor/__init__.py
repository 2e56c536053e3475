"""What a hub shows about itself: health, Prometheus metrics, a status page."""
