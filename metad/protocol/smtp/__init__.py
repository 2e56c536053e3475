"""SMTP and LMTP, sans-IO (RFC 5321, 2033, 3030, 3207)."""
