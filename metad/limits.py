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
# Commands of one session that lead to no message, between two messages: NOOP, RSET, EHLO, VRFY,
# refused recipients.  Postfix: 100 (smtpd_junk_command_limit), and 20 for refused recipients.
SMTP_IDLE_COMMANDS = 100
# Received: fields of a message before it is called a loop: RFC 5321 6.3 says 100 or more.
RECEIVED_HOPS = 100
# Seconds without an octet from the client: RFC 5321 4.5.3.2.7.
SMTP_IDLE = 300

# --- Connections ----------------------------------------------------------------------------------
# At once, in all: a worker holds 2 KiB of an idle one, with TLS 45 (perf/tls.py).  Postfix: 100
# processes for each service; Dovecot: 1,000 for imap-login.
CONNECTIONS = 10_000
# At once from one client (IPv4 address, IPv6 /64): Postfix takes 50, but a relay in front of a hub
# is one address.
NETWORK_CONNECTIONS = 1_000
# Connections of one network that a worker does not show to the others, for most have no more.
UNSHOWN_CONNECTIONS = 4
# Above this part of the cap slow senders have to keep a rate.
CROWDED = 0.8
# Octets per second of a message being sent, averaged over it, when it is crowded: Postfix's
# smtpd_min_data_rate.
MIN_DATA_RATE = 500
# Seconds that every message gets before it must have kept that rate: crowded, and else.
CROWDED_GRACE = 60
TRANSACTION_GRACE = 3_600
# Seconds for a PROXY header (its specification: at least 3) and for a TLS handshake and its end.
PROXY_HEADER = 10
TLS_HANDSHAKE = 60
TLS_SHUTDOWN = 5
# After our last words a client's octets are read on, and thrown away, lest a reset takes those
# words from it: seconds, and octets (nginx lingering_close: 30 s).
LINGER = 5
LINGER_OCTETS = 1 * MIB
# Logins that fail: the answer waits, doubling, by the failures of the client's network; forgotten
# after a while (Dovecot: 2 to 15 s, 60 s).  How many networks are remembered.
LOGIN_FAILURE_DELAY = 1.0
MAX_LOGIN_FAILURE_DELAY = 15.0
LOGIN_FAILURE_MEMORY = 300
NETWORKS_REMEMBERED = 16_384
# Passwords of one network being checked at once; more wait for their turn.
LOGIN_CHECKS = 4

# --- Memory ---------------------------------------------------------------------------------------
# Octets that a worker holds of its clients': half for messages on their way in, which go to files
# beyond that, half for what is sent before its turn or not read.  Postfix and Dovecot have
# processes for their clients instead, each with a limit (Dovecot: vsz_limit, 256 MB).
MEMORY = 128 * MIB
MIN_MEMORY = 8 * MIB
MAX_MEMORY = 64 * GIB
# Of one message; more of it goes to its file.  Up to when it is a small one, for which half of the
# room is kept.  What Python needs for each piece of one that came.
MESSAGE_MEMORY = 512 * KIB
SMALL_MESSAGE = 64 * KIB
CHUNK_MEMORY = 64
# Octets of one client waiting for their turn before it is not read from.
READ_AHEAD = 256 * KIB
# Of a recipient of an open transaction; each of the first few is the connection's own.
RECIPIENT_MEMORY = 512
FREE_RECIPIENTS = 16
# Of a connection: session, transport, machine (perf/tls.py: 2 KiB, and 45 with TLS).  uvloop's
# TLS has a buffer of 256 KiB, OpenSSL one of a third more, and both keep what they grew to.
SESSION_MEMORY = 4 * KIB
TLS_MEMORY = 704 * KIB
# Messages are read, and passwords checked, in so many threads of a worker.
WORKER_THREADS = 4
# What is sent at a time of a message that a client takes slowly, or that is large.
PIECE_GIVEN = 128 * KIB
# The program itself, in one worker: Python, its modules, threads.
PROGRAM_MEMORY = 48 * MIB
# Octets for each login and network remembered.
LOGIN_MEMORY_OCTETS = 320
NETWORK_OCTETS = 320

# --- POP3 ---------------------------------------------------------------------------------------
# Octets of a command line with its CR LF: RFC 2449 section 4.
POP3_COMMAND_LINE = 255
# Octets of a SASL response: RFC 4954 section 4 says that 12,288 suffice; RFC 5034 section 4 frees
# such lines from the limit of commands without naming another.
SASL_RESPONSE = 12_288
# Seconds without an octet, before and after login: RFC 1939 section 3 demands 600 of a session;
# before login there is nothing to lose (Dovecot: 60).
POP3_LOGIN_IDLE = 60
POP3_IDLE = 600

# Commands before a login; a client needs five or six.  A login that fails is slowed down elsewhere.
POP3_LOGIN_COMMANDS = 100

# --- Users and passwords --------------------------------------------------------------------------
# Octets of a password: PBKDF2 takes any length, so an attacker must not choose it.  RFC 4616
# speaks of 255 octets for PLAIN; 1,024 leaves room for tokens.
PASSWORD = 1024
# Passes of PBKDF2 for a password: RFC 7677 section 4 demands 4,096, the default of Postgres too.
# It is multiplied by every first login of every mailbox after a restart.
SCRAM_ITERATIONS = 4096
MAX_SCRAM_ITERATIONS = 1_000_000
# What an imported hash may ask for at each check: argon2 memory in octets and passes at that much,
# the rounds of SHA-crypt (its own most is 999,999,999), the cost of bcrypt (each one doubles it).
ARGON2_MEMORY = 1 * GIB
ARGON2_PASSES = 8
CRYPT_ROUNDS = 10_000_000
BCRYPT_COST = 16
# Quota of a mailbox in octets and messages; the least and the most seconds until mail expires.
MAX_QUOTA = 1 << 60
MAX_QUOTA_MESSAGES = 4_000_000_000
EXPIRY = (60, 100 * 366 * 86_400)
# The mail of the built-in postmaster, which nobody may ever read.
POSTMASTER_EXPIRY = 90 * 86_400
# Addresses that one alias stands for, over all it leads to: Postfix stops at 1,000
# (virtual_alias_expansion_limit).
ALIAS_MEMBERS = 1000
# Seconds for which a verified login is remembered, and how many are.
LOGIN_MEMORY = 600
LOGIN_MEMORY_ENTRIES = 65_536

# --- Processes ------------------------------------------------------------------------------------
# Worker slots; each holds one log and two sockets per listener.
MAX_WORKERS = 64
# Seconds without a heartbeat before a worker is called hung (gunicorn: 30), seconds a session gets
# for its transaction at a stop, and for all it does after a reload (nginx: no end by itself).
HEARTBEAT = 30
STOP_DEADLINE = 10
RELOAD_DEADLINE = 300

# --- Store ----------------------------------------------------------------------------------------
# Octets of a log: a message may be a quarter of one.
LOG_SIZE = 128 * MIB
MIN_LOG_SIZE = 1 * MIB
MAX_LOG_SIZE = 2 * GIB
LOG_SIZE_STEP = 4096
# Logs that the collector may have in use besides the workers': one per generation of survivors.
COLLECTOR_LOGS = 3
# The collector: messages a second and seconds below which the hub is idle, per cent of a log that
# is dead, per cent of the space that is free.
IDLE_LOAD = 50
IDLE_SECONDS = 10
GARBAGE = 70
LOW_SPACE = 10
ENOUGH_SPACE = 15

# --- Control socket -------------------------------------------------------------------------------
# Octets of a request and of a reply, each one line of JSON.  A reload carries a configuration
# file; a status of 64 workers is 20 KiB.
CONTROL_REQUEST = 4 * MIB
CONTROL_REPLY = 4 * MIB
# Clients at once, and octets held for one that does not read.
CONTROL_CLIENTS = 32
CONTROL_OUTPUT = 8 * MIB
# Seconds a command waits for the hub's answer; a reload's comes when new workers are ready.
CONTROL_TIMEOUT = 10.0
RELOAD_TIMEOUT = 90.0

# --- Configuration --------------------------------------------------------------------------------
# Octets of a configuration file: it is read whole.
CONFIG_FILE = 1 * MIB
