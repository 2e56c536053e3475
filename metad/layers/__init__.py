"""Back ends: where accepted mail goes and where a mailbox's mail comes from."""
