"""`metad mail`: the mail of one mailbox, and moving mail in and out."""
