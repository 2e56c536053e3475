"""What is installed: the wheel, the Debian package, its units, and a machine that runs them."""
