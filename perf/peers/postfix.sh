#!/bin/sh
# Postfix: virtual delivery into Maildirs; with LMTP_PORT set, delivery to Dovecot's LMTP instead.
# As Debian ships it, apart from ports, the domain and what needs the network (DNS, IPv6, TLS).
set -eu
. /perf-peers/debian.sh

install_it() {
    packages postfix
    cp /etc/postfix/master.cf /etc/postfix/master.cf.dist
}

configure() {
    mailbox_user
    mkdir -p "$DATA/queue" "$DATA/postfix"
    chown postfix "$DATA/postfix"
    while read -r address; do
        printf '%s %s/\n' "$address" "$address"
    done <"$DATA/users" >"$DATA/virtual"
    cat >/etc/postfix/main.cf <<MAIN
compatibility_level = 3.6
myhostname = mx.perf.invalid
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
disable_dns_lookups = yes
smtpd_peername_lookup = no
queue_directory = $DATA/queue
data_directory = $DATA/postfix
maillog_file = $DATA/maillog
maillog_file_prefixes = $DATA
virtual_mailbox_domains = perf.example
virtual_mailbox_maps = hash:$DATA/virtual
virtual_mailbox_base = $DATA/mail
virtual_uid_maps = static:$(id -u vmail)
virtual_gid_maps = static:$(id -g vmail)
alias_maps =
alias_database =
smtpd_tls_security_level = none
smtpd_client_connection_count_limit = 0
${LMTP_PORT:+virtual_transport = lmtp:inet:127.0.0.1:$LMTP_PORT}
MAIN
    # The root outlives this run: always from the file as it was installed.
    sed -e "s/^smtp  *inet/127.0.0.1:$SMTP_PORT inet/" \
        -e 's/^\([a-z0-9.:]*[[:space:]].*[[:space:]]\)y\([[:space:]].*\)$/\1n\2/' \
        -e '/^postlog/d' /etc/postfix/master.cf.dist >/etc/postfix/master.cf
    echo 'postlog unix-dgram n - n - 1 postlogd' >>/etc/postfix/master.cf
    postmap "hash:$DATA/virtual"
}

case $1 in
install) install_it ;;
run)
    configure
    exec postfix start-fg
    ;;
esac
