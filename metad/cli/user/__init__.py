"""`metad user`: accounts and aliases."""
