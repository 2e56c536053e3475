"""Users: the database of addresses, their passwords, and the memory of verified logins."""
