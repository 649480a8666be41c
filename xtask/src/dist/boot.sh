# Boots systemd in the tree $1, in namespaces that `unshare` has made, with devices of its own and what
# sets the kernel read-only: outside it leaves nothing but empty cgroups.
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tracefs tracefs sys/kernel/tracing
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty ptmx; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
ip link set lo up
mkdir -p old
pivot_root . old
exec chroot . /bin/sh -c 'umount -l /old; container=other exec /lib/systemd/systemd'
