# Sourced by the scripts of the peers: how a package comes into a root made by enter.sh.

DATA=/perf-data
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

# The packages $@, installed in this root.  No service is started.
packages() {
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    set -- -q -y --no-install-recommends -o Dir::State::lists=/perf-apt/lists \
        -o Dir::Cache::archives=/perf-apt/archives -o APT::Sandbox::User=root install "$@"
    apt-get "$@" </dev/null || {
        apt-get -q -o Dir::State::lists=/perf-apt/lists -o APT::Sandbox::User=root update </dev/null
        apt-get "$@" </dev/null
    }
}

# A system user for the mailboxes.
mailbox_user() {
    getent passwd vmail >/dev/null || useradd --system --user-group --home-dir "$DATA" vmail
    mkdir -p "$DATA/mail"
    chown vmail: "$DATA/mail"
}
