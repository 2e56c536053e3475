"""TLS keys and certificates: the store in DATA/tls, and what a certificate says."""
