#!/bin/sh
# sendmail: Debian's own configuration with its local mailer, system users, mbox in /var/mail.
set -eu
. /perf-peers/debian.sh

install_it() {
    packages sendmail-bin procmail sensible-mda m4 sendmail-cf
}

configure() {
    mkdir -p "$DATA/mail" "$DATA/mqueue"
    chown root:mail "$DATA/mail"
    chmod 2775 "$DATA/mail"
    mount --bind "$DATA/mail" /var/mail
    while IFS=@ read -r name _; do
        getent passwd "$name" >/dev/null || useradd --no-create-home --groups mail "$name"
    done <"$DATA/users"
    mkdir -p /etc/mail
    cat >/etc/mail/perf.mc <<CONF
include(\`/usr/share/sendmail/cf/m4/cf.m4')dnl
OSTYPE(\`debian')dnl
DOMAIN(\`debian-mta')dnl
undefine(\`confHOST_STATUS_DIRECTORY')dnl
DAEMON_OPTIONS(\`Name=MTA, Family=inet, Addr=127.0.0.1, Port=$SMTP_PORT')dnl
define(\`confDOMAIN_NAME', \`mx.perf.example')dnl
define(\`QUEUE_DIR', \`$DATA/mqueue')dnl
define(\`confBIND_OPTS', \`-DNSRCH -DEFNAMES')dnl
define(\`confTO_IDENT', \`0')dnl
define(\`confCONNECTION_RATE_THROTTLE', \`0')dnl
define(\`confREFUSE_LA', \`1000')dnl
define(\`confQUEUE_LA', \`1000')dnl
define(\`confDELAY_LA', \`0')dnl
FEATURE(\`nocanonify')dnl
FEATURE(\`accept_unresolvable_domains')dnl
FEATURE(\`accept_unqualified_senders')dnl
MAILER(\`local')dnl
MAILER(\`smtp')dnl
LOCAL_CONFIG
Cwperf.example
CONF
    m4 /etc/mail/perf.mc >/etc/mail/sendmail.cf
    # Without a full name for this machine sendmail sleeps for a minute at its start.
    echo "127.0.0.1 $(hostname).perf.example $(hostname) localhost" >/etc/hosts
    sed -i 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf
    : >/etc/mail/local-host-names
    : >/etc/aliases
    newaliases >/dev/null 2>&1 || true
}

case $1 in
install) install_it ;;
run)
    configure
    # Two deliveries into one mbox at a time defer one of them: the queue is run often.
    exec sendmail -bD -q2s
    ;;
esac
