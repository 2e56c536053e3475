"""Every fixed limit, by name, with the RFC clause or the precedent that justifies it.

Rules of this file:

* A limit is a number with its unit in the comment; what an operator may change is the default of
  a setting in config.py, everything else is as it stands here.
* No limit bites an honest client: each is at or above what the standard demands of a server.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- SMTP ---------------------------------------------------------------------------------------
# Octets of a command line with its CR LF.  RFC 5321 4.5.3.1.4 demands 512, extensions add to it
# (SMTPUTF8 and the ESMTP parameters); Postfix takes 2,048 (line_length_limit).
SMTP_COMMAND_LINE = 2048
# Octets of a domain: RFC 5321 4.5.3.1.2.  (Those of a local part are in protocol/address.py.)
DOMAIN = 255
# Recipients of one transaction: RFC 5321 4.5.3.1.8 demands 100; Postfix takes 1,000.
RECIPIENTS = 1000
MAX_RECIPIENTS = 50_000
# Octets of a message: RFC 5321 4.5.3.1.7 demands 64 KiB.  Postfix takes 10 MB, the large providers
# 25 to 50 MB.
MESSAGE_SIZE = 30 * MIB
MIN_MESSAGE_SIZE = 64 * KIB
# Errors of the syntax of one session (replies 500 to 504): Postfix ends it at 20
# (smtpd_hard_error_limit).
SMTP_ERRORS = 20
# Received: fields of a message before it is called a loop: RFC 5321 6.3 says 100 or more.
RECEIVED_HOPS = 100
# Seconds without an octet from the client: RFC 5321 4.5.3.2.7.
SMTP_IDLE = 300

# --- POP3 ---------------------------------------------------------------------------------------
# Octets of a command line with its CR LF: RFC 2449 section 4.
POP3_COMMAND_LINE = 255
# Seconds without an octet, before and after login: RFC 1939 section 3 demands 600 of a session;
# before login there is nothing to lose (Dovecot: 60).
POP3_LOGIN_IDLE = 60
POP3_IDLE = 600

# --- Users and passwords --------------------------------------------------------------------------
# Octets of a password: PBKDF2 takes any length, so an attacker must not choose it.  RFC 4616
# speaks of 255 octets for PLAIN; 1,024 leaves room for tokens.
PASSWORD = 1024
# Passes of PBKDF2 for a password: RFC 7677 section 4 demands 4,096, the default of Postgres too.
# It is multiplied by every first login of every mailbox after a restart.
SCRAM_ITERATIONS = 4096
MAX_SCRAM_ITERATIONS = 1_000_000
# Seconds for which a verified login is remembered, and how many are.
LOGIN_MEMORY = 600
LOGIN_MEMORY_ENTRIES = 65_536

# --- Processes ------------------------------------------------------------------------------------
# Worker slots; each holds one log and two sockets per listener.
MAX_WORKERS = 64

# --- Store ----------------------------------------------------------------------------------------
# Octets of a log: a message may be a quarter of one.
LOG_SIZE = 128 * MIB
MIN_LOG_SIZE = 1 * MIB
MAX_LOG_SIZE = 2 * GIB
LOG_SIZE_STEP = 4096

# --- Control socket -------------------------------------------------------------------------------
# Octets of a request and of a reply, each one line of JSON.  A status of 64 workers is 20 KiB.
CONTROL_REQUEST = 64 * KIB
CONTROL_REPLY = 4 * MIB
# Clients at once, and octets held for one that does not read.
CONTROL_CLIENTS = 32
CONTROL_OUTPUT = 8 * MIB
# Seconds a command waits for the hub's answer.
CONTROL_TIMEOUT = 10.0

# --- Configuration --------------------------------------------------------------------------------
# Octets of a configuration file: it is read whole.
CONFIG_FILE = 1 * MIB
