"""Every fixed limit, by name, with the RFC clause or the precedent that justifies it.

Rules of this file:

* A limit is a number with its unit in the comment.  Those that an operator may change are defaults
  of settings (metad.config.settings); the others are fixed.
* No limit affects an honest client: each is at or above what the standard requires of a server.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- SMTP ---------------------------------------------------------------------------------------
# Octets of a command line with its CR LF.  RFC 5321 4.5.3.1.4 requires 512, and extensions add to
# it (SMTPUTF8, ESMTP parameters); Postfix accepts 2,048 (line_length_limit).
SMTP_COMMAND_LINE = 2048
# Octets of a domain: RFC 5321 4.5.3.1.2.  (Those of a local part are in protocol/address.py.)
DOMAIN = 255
# Recipients of one transaction: RFC 5321 4.5.3.1.8 requires 100; Postfix accepts 1,000.
RECIPIENTS = 1000
MAX_RECIPIENTS = 50_000
# Octets of a message: RFC 5321 4.5.3.1.7 requires 64 KiB.  Postfix accepts 10 MB, the large
# providers 25 to 50 MB.
MESSAGE_SIZE = 30 * MIB
MIN_MESSAGE_SIZE = 64 * KIB
# Syntax errors in one session (replies 500 to 504): Postfix ends the session at 20
# (smtpd_hard_error_limit).
SMTP_ERRORS = 20
# Commands between two messages that lead to no message: NOOP, RSET, EHLO, VRFY, and whatever is
# refused.  Postfix: 100 (smtpd_junk_command_limit), and 20 for refused recipients.
SMTP_IDLE_COMMANDS = 100
# Recipients refused since the last stored message before each further one delays the session
# (Postfix: smtpd_soft_error_limit, 10); seconds of that delay, doubled with every ten more
# (Postfix: smtpd_error_sleep_time, 1); the longest.  Trying 100 addresses takes five minutes.
HARVEST_FREE = 10
HARVEST_DELAY = 0.5
MAX_HARVEST_DELAY = 4.0
# Recipients beyond the limit of a transaction that do not count as refused (Postfix:
# smtpd_recipient_overshoot_limit): a client may send all of a long list in one group.
RECIPIENT_OVERSHOOT = 1000
# Octets up to which a refused message or chunk is read to its end, so that a client without SIZE
# learns the reason.  Postfix reads on without a limit.
REFUSED_OCTETS = 1 * GIB
# Received: fields above which a message is in a loop: RFC 5321 6.3 says at least 100.
RECEIVED_HOPS = 100
# Seconds without input from the client: RFC 5321 4.5.3.2.7.
SMTP_IDLE = 300

# --- Connections ----------------------------------------------------------------------------------
# Simultaneous connections: an idle one costs a worker 2 KiB, with TLS 45 (perf/tls.py).  Postfix:
# 100 processes for each service; Dovecot: 1,000 for imap-login.
CONNECTIONS = 10_000
# Simultaneous connections of one client (IPv4 address, IPv6 /64): Postfix allows 50, but a relay
# in front of a hub has a single address.
NETWORK_CONNECTIONS = 1_000
# A worker publishes the count of a network only above this number, which most networks never reach.
UNPUBLISHED_CONNECTIONS = 4
# Above this share of the connection cap, slow senders must keep a minimum rate.
CROWDED = 0.8
# Seconds for which a client may be idle nevertheless, above that share, before it must give way to
# new ones; and the part of all connections that one protocol may have.
IDLE_GRACE = 5
PROTOCOL_SHARE = 0.9
# That rate in octets per second, averaged over the message: Postfix's smtpd_min_data_rate.
MIN_DATA_RATE = 500
# Seconds that every message gets before the rate applies: above that share, and below it.
CROWDED_GRACE = 60
TRANSACTION_GRACE = 3_600
# Seconds for a PROXY header (its specification: at least 3) and for a TLS handshake and its end.
PROXY_HEADER = 10
TLS_HANDSHAKE = 60
TLS_SHUTDOWN = 5
# After our last reply we go on reading and discard the input, because a reset would destroy the
# reply on its way: seconds, and octets (nginx lingering_close: 30 s).
LINGER = 5
LINGER_OCTETS = 1 * MIB
# Seconds from the start of its check until a failed login is answered; the same number of seconds,
# doubled with each further failure of the client's network, before its next check; how long
# failures count (Dovecot: 2 to 15 s, 60 s).  How many networks are remembered.
LOGIN_FAILURE_DELAY = 1.0
MAX_LOGIN_FAILURE_DELAY = 15.0
LOGIN_FAILURE_MEMORY = 300
NETWORKS_REMEMBERED = 16_384
# Simultaneous password checks of one network; more than that queue.
LOGIN_CHECKS = 4

# --- Memory ---------------------------------------------------------------------------------------
# Octets of client data in a worker: half buffers incoming messages, the excess spills to files;
# half bounds unread input and unsent output.  Postfix and Dovecot use a process per client instead,
# each with a limit (Dovecot: vsz_limit, 256 MB).
MEMORY = 128 * MIB
MIN_MEMORY = 8 * MIB
MAX_MEMORY = 64 * GIB
# Octets of one message in memory; the rest goes to its file.  The size up to which a message is
# small: half of the memory is reserved for small ones.  Python's overhead for each received piece.
MESSAGE_MEMORY = 512 * KIB
SMALL_MESSAGE = 64 * KIB
CHUNK_MEMORY = 64
# Octets of a worker's unfinished messages, on disk and in memory; a client network may have half of
# what the others leave.
# Postfix has no such limit: it keeps them in its queue.
UNFINISHED = 4 * GIB
MIN_UNFINISHED = 64 * MIB
# Unprocessed input of one client, in octets, at which we stop reading from it.
READ_AHEAD = 256 * KIB
# Octets of a recipient in an open transaction; the first few belong to the connection.
RECIPIENT_MEMORY = 512
FREE_RECIPIENTS = 16
# Octets of a connection: session, transport, machine (perf/tls.py: 2 KiB, and 45 with TLS).  The
# TLS buffers of uvloop (256 KiB) and OpenSSL (a third more) never shrink.
SESSION_MEMORY = 4 * KIB
TLS_MEMORY = 704 * KIB
# Threads of a worker that read messages and check passwords.
WORKER_THREADS = 4
# A message up to this size is sent to a POP3 client in one piece, a larger one in smaller pieces;
# so is every message of more than one such piece while memory is short.
MESSAGE_GIVEN = 1 * MIB
PIECE_GIVEN = 128 * KIB
# The program itself in one worker: Python, its modules, threads.
PROGRAM_MEMORY = 48 * MIB
# Octets for each remembered login and network.
LOGIN_MEMORY_OCTETS = 320
NETWORK_OCTETS = 320

# --- Filters --------------------------------------------------------------------------------------
# Connections of one worker to rspamd: its own workers each check several messages at once.
FILTER_CONNECTIONS = 32
# Octets of each pending check, besides its message: unsent data, a piece of a file, the answer.
FILTER_MEMORY = 128 * KIB + 1 * MIB + 2 * 512 * KIB
# Octets of one answer of rspamd as Python objects, in the worst case; only one is parsed at a time.
FILTER_ANSWER_MEMORY = 24 * MIB

# --- POP3 ---------------------------------------------------------------------------------------
# Octets of a command line with its CR LF: RFC 2449 section 4.
POP3_COMMAND_LINE = 255
# Octets of a SASL response: RFC 4954 section 4 says that 12,288 suffice; RFC 5034 section 4 exempts
# such lines from the limit of commands without setting another.
SASL_RESPONSE = 12_288
# Seconds without input, before and after login: RFC 1939 section 3 requires 600 for a session;
# before login there is nothing to lose (Dovecot: 60).
POP3_LOGIN_IDLE = 60
POP3_IDLE = 600

# Seconds for which a login waits for a mailbox that another session has open, and between retries:
# two devices of one person may poll at the same time, and a poll takes less than a second.
IN_USE_PATIENCE = 5.0
IN_USE_RETRY = 0.25
# The same for mail that was just acknowledged and is not in the index yet: five milliseconds if all
# goes well, the time of a recovery if its worker was killed.  Retries become less frequent.
BEHIND_PATIENCE = 10.0
BEHIND_RETRY = 0.001
BEHIND_RETRY_MOST = 0.1
# Commands before a login; a client needs five or six.  Failed logins are delayed elsewhere.
POP3_LOGIN_COMMANDS = 100

# --- Users and passwords --------------------------------------------------------------------------
# Octets of a password: PBKDF2 accepts any length, which must not be left to an attacker.  RFC 4616
# speaks of 255 octets for PLAIN; 1,024 leaves room for tokens.
PASSWORD = 1024
# Passes of PBKDF2 for a password: RFC 7677 section 4 requires 4,096, the default of Postgres too.
# The first login of every mailbox after a restart costs this much.
SCRAM_ITERATIONS = 4096
MAX_SCRAM_ITERATIONS = 1_000_000
# Limits on the cost of checking an imported hash: argon2 memory in octets and passes with that
# much, the rounds of SHA-crypt (at most 999,999,999 by its own definition), the cost of bcrypt
# (each step doubles it).
ARGON2_MEMORY = 1 * GIB
ARGON2_PASSES = 8
CRYPT_ROUNDS = 10_000_000
BCRYPT_COST = 16
# Quota of a mailbox in octets and messages; the range of seconds until mail expires.
MAX_QUOTA = 1 << 60
MAX_QUOTA_MESSAGES = 4_000_000_000
EXPIRY = (60, 100 * 366 * 86_400)
# Expiry of the built-in postmaster's mail, which may never be read.
POSTMASTER_EXPIRY = 90 * 86_400
# Addresses that one alias expands to, nested aliases included: Postfix stops at 1,000
# (virtual_alias_expansion_limit).
ALIAS_MEMBERS = 1000
# Seconds for which a verified login is remembered, and the number of remembered logins.
LOGIN_MEMORY = 600
LOGIN_MEMORY_ENTRIES = 65_536

# --- Processes ------------------------------------------------------------------------------------
# Worker slots; each holds one log and two sockets per listener.
MAX_WORKERS = 64
# Seconds without a heartbeat before a worker counts as hung (gunicorn: 30); seconds that a session
# gets to finish its transaction at a stop, and to end after a reload (nginx: unlimited).
HEARTBEAT = 30
STOP_DEADLINE = 10
RELOAD_DEADLINE = 300

# --- Store ----------------------------------------------------------------------------------------
# Octets of a log.  A message can be at most a quarter of one.
LOG_SIZE = 128 * MIB
MIN_LOG_SIZE = 1 * MIB
MAX_LOG_SIZE = 2 * GIB
LOG_SIZE_STEP = 4096
# Logs that the collector uses besides those of the workers: one per generation of survivors.
COLLECTOR_LOGS = 3
# The collector: messages per second below which the hub is idle, for how many seconds; percentage
# of garbage in a log; percentages of free space.
IDLE_LOAD = 50
IDLE_SECONDS = 10
# Seconds without progress after which a backup or fsck no longer keeps logs from being freed.
BACKUP_LEASE = 300
GARBAGE = 70
LOW_SPACE = 10
ENOUGH_SPACE = 15

# --- Cluster --------------------------------------------------------------------------------------
# Copies of a message (Cassandra and HDFS: 3 by default); octets of an encoded view, of which a
# member takes 200; the largest weight of a member (Ceph, Cassandra: relative, by size of disk).
CLUSTER_COPIES = 8
CLUSTER_VIEW = 64 * KIB
CLUSTER_WEIGHT = 10_000
# Octets of a body on a link (a listing, a small message), which both nodes have in memory; the
# largest `message_size`; a text that comes in pieces and waits in a file: with stuffed dots, with
# its trace, or from before the cluster.
CLUSTER_BODY = 64 * MIB
CLUSTER_MESSAGE = 60 * MIB
CLUSTER_TEXT = MAX_LOG_SIZE // 2
# Octets that may wait for their answers on a link, those of parts of large messages among them, and
# what each request counts besides.
CLUSTER_OUTSTANDING = 8 * MIB
CLUSTER_PARTS = 6 * MIB
# Messages of other nodes that arrive in pieces at a worker, each of which may have a file open.
CLUSTER_STREAMS = 1024
CLUSTER_REQUEST_MEMORY = 2 * KIB
# Seconds: between pings, of silence until a link is dead, and for which the loop of a process may
# stand still before its links are closed (etcd: heartbeats of 0.1, elections after 1; corosync:
# 3 until a token is lost).
CLUSTER_PING = 1.0
CLUSTER_SILENCE = 3.0
CLUSTER_STOOD_STILL = 1.0
# Seconds until a link is dialed again, doubling; connections that have not shown a certificate;
# links of a process: seven other nodes of 64 workers each.
CLUSTER_REDIAL = 0.1
CLUSTER_LONGEST_REDIAL = 0.5
CLUSTER_UNKNOWN_PEERS = 64
CLUSTER_LINKS = 512
# The directory process.  Seconds: of a lease in etcd; for which a lone reader trusts what was read
# under it, less than the lease because two clocks differ; between renewals; between pulses; of a
# change of the view until it is refused.  Bytes of an answer of etcd (pages of 1,000 rows), and
# seconds of one attempt at one endpoint.
CLUSTER_LEASE = 12
CLUSTER_WORD = 10.0
CLUSTER_ROUND = 2.0
CLUSTER_PULSE = 30.0
CLUSTER_PROPOSAL = 8.0
ETCD_ANSWER = 16 * MIB
ETCD_PAGE = 1_000
ETCD_ATTEMPT = 2.0
# Seconds for a page of rows: etcd counts all rows of the range that follow it.
ETCD_PAGE_ATTEMPT = 30.0
# Seconds until a member whose lease has ended is absent.
CLUSTER_ABSENT_AFTER = (15, 7 * 86_400)
# Its socket: clients at once; bytes of a frame, such as 1 MiB of aliases with the names of their
# members once more; seconds of silence after which one is closed.
CLUSTER_LOCAL_CLIENTS = 128
CLUSTER_LOCAL_FRAME = 4 * MIB
CLUSTER_LOCAL_IDLE = 60.0

# --- Control socket -------------------------------------------------------------------------------
# Octets of a request and of a reply, each one line of JSON.  A reload carries a configuration
# file; a status of 64 workers is 20 KiB.
CONTROL_REQUEST = 4 * MIB
CONTROL_REPLY = 4 * MIB
# Simultaneous clients, and octets buffered for one that does not read.
CONTROL_CLIENTS = 32
CONTROL_OUTPUT = 8 * MIB
# Seconds that a command waits for the reply; that to a reload is sent when the new workers are
# ready.
CONTROL_TIMEOUT = 10.0
RELOAD_TIMEOUT = 90.0

# --- Configuration --------------------------------------------------------------------------------
# Octets of a configuration file, which is read whole.
CONFIG_FILE = 1 * MIB
