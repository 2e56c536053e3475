#!/bin/sh
# enter.sh ROOT DATA SCRIPT WHAT: runs `sh SCRIPT WHAT` as root in a root directory of its own.
#
# The root is an overlay above this machine's own: what WHAT=install writes lies in ROOT/upper and
# nowhere else, what any other WHAT writes in DATA/.root, so that each run begins with what was
# installed.  The machine sees none of it.  Mounts and processes are in
# namespaces of their own, so both are gone when SCRIPT ends.  The network is the machine's; the
# scripts use ports of 127.0.0.1 only.
#
#   /perf-data    DATA, on the machine's file system (an overlay would not be a fair disk)
#   /perf-peers   the directory of SCRIPT
#   /perf-apt     lists and archives of apt, shared by all roots
set -eu

root=$1
data=$2
script=$3
what=$4
here=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd -P)

if [ -z "${PERF_ENTERED-}" ]; then
    mkdir -p "$root/upper" "$root/work" "$root/merged" "$root/../apt/lists/partial" \
        "$root/../apt/archives/partial" "$data/.root/upper" "$data/.root/work" "$data/.root/merged"
    # The process that started this may be killed: nothing of it must stay.
    PERF_ENTERED=yes exec setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child --propagation private \
        sh "$0" "$root" "$data" "$script" "$what"
fi

top=$root
if [ "$what" != install ]; then
    # Not as a second lower layer: it lies below the first, which the kernel refuses.
    top=$data/.root
    cp -a --preserve=all "$root/upper/." "$top/upper"
fi
merged=$top/merged
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$merged"
mount -t proc proc "$merged/proc"
mount --rbind /dev "$merged/dev"
mount -t tmpfs -o mode=755 tmpfs "$merged/run"
mkdir -p "$merged/perf-data" "$merged/perf-peers" "$merged/perf-apt"
mount --bind "$data" "$merged/perf-data"
mount --bind "$here" "$merged/perf-peers"
mount --bind "$root/../apt" "$merged/perf-apt"
unset PERF_ENTERED
exec chroot "$merged" sh "/perf-peers/${script##*/}" "$what"
