# Boots systemd in the tree $1, in namespaces that `unshare` has made: nothing outside is touched.
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tracefs tracefs sys/kernel/tracing
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount --rbind /dev dev
ip link set lo up
mkdir -p old
pivot_root . old
exec chroot . /bin/sh -c 'umount -l /old; container=other exec /lib/systemd/systemd'
