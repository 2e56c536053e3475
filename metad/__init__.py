"""metad: a mail hub.  SMTP in, fixed-size logs, POP3 out."""

__version__ = "0.1.0.dev0"
