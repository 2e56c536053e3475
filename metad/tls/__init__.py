"""TLS keys and certificates: the store in DATA/tls, and a reader of certificates."""
