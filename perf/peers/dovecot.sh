#!/bin/sh
# Dovecot: LMTP into mailboxes of FORMAT (maildir or mdbox), and POP3.  As Debian ships it, apart
# from ports, one static password in plain text, and no limit of connections per address.
set -eu
. /perf-peers/debian.sh

install_it() {
    packages dovecot-lmtpd dovecot-pop3d
}

configure() {
    mailbox_user
    cat >/etc/dovecot/perf.conf <<CONF
protocols = pop3 lmtp
ssl = no
disable_plaintext_auth = no
listen = 127.0.0.1
log_path = $DATA/dovecot.log
base_dir = /run/dovecot
mail_location = $FORMAT:$DATA/mail/%u
mail_uid = vmail
mail_gid = vmail
first_valid_uid = 1
mail_max_userip_connections = 10000
postmaster_address = postmaster@perf.example
passdb {
  driver = static
  args = password={plain}$PASSWORD
}
userdb {
  driver = static
  args = uid=vmail gid=vmail home=$DATA/mail/%u allow_all_users=yes
}
service pop3-login {
  inet_listener pop3 {
    port = $POP3_PORT
  }
  inet_listener pop3s {
    port = 0
  }
}
service pop3 {
  process_limit = 1024
}
service lmtp {
  process_limit = 200
  inet_listener lmtp {
    address = 127.0.0.1
    port = $LMTP_PORT
  }
}
CONF
}

case $1 in
install) install_it ;;
run)
    configure
    exec dovecot -F -c /etc/dovecot/perf.conf
    ;;
esac
