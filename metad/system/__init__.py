"""The operating system: files, clocks, shared memory, sockets, privileges, systemd."""
