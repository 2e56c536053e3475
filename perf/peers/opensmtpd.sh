#!/bin/sh
# OpenSMTPD: virtual users, Maildir delivery.
set -eu
. /perf-peers/debian.sh

install_it() {
    packages opensmtpd
}

configure() {
    mailbox_user
    mkdir -p "$DATA/spool" /var/spool/smtpd /var/lib/opensmtpd/empty
    mount --bind "$DATA/spool" /var/spool/smtpd
    chmod 711 /var/spool/smtpd
    sed "s/\$/ vmail/" "$DATA/users" >"$DATA/virtual"
    cat >/etc/perf-smtpd.conf <<CONF
smtp limit max-mails 1000000
table users file:$DATA/virtual
listen on 127.0.0.1 port $SMTP_PORT hostname mx.perf.invalid
action "store" maildir "$DATA/mail/%{rcpt.user}@perf.example" virtual <users>
match from any for domain "perf.example" action "store"
CONF
}

case $1 in
install) install_it ;;
run)
    configure
    exec smtpd -d -f /etc/perf-smtpd.conf
    ;;
esac
