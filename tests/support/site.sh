#!/bin/sh
# Becomes the init of a machine of its own: in new namespaces, on a writable copy of this system.
#   site.sh DIRECTORY PROJECT NAME
set -e
directory=$1 project=$2 name=$3
mount -t tmpfs -o mode=755 site "$directory"
mkdir "$directory/upper" "$directory/work" "$directory/root"
mount -t overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" site "$directory/root"
cd "$directory/root"
# Wherever the project is, here it is installed for all: services see nothing beneath /tmp.
mkdir -p opt/relocator
mount --rbind "$project" opt/relocator
mount -o remount,bind,ro opt/relocator
cat >usr/local/bin/relocator <<'EOF'
#!/bin/sh
set -- /opt/relocator/.venv/lib/python3*/site-packages "$@"
PYTHONPATH=/opt/relocator:$1
export PYTHONPATH
shift
exec /usr/bin/python3 -m relocator.cli.main "$@"
EOF
chmod 755 usr/local/bin/relocator
# The kernel is everybody's: here nothing may be set in it but the network's part, which is this
# machine's own; no device made, no module loaded.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sys sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm dev/net
for node in null zero full random urandom tty fuse net/tun; do
    [ -e /dev/$node ] && touch dev/$node && mount --bind /dev/$node dev/$node
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 pts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mkdir tmp/old
pivot_root . tmp/old
umount -l /tmp/old
# Nothing of what this system would start at boot, but what every service stands upon.
rm -rf /etc/systemd/system/*.wants /etc/libvirt/hooks
for unit in systemd-modules-load systemd-remount-fs systemd-sysctl; do
    ln -sf /dev/null /etc/systemd/system/$unit.service
done
mkdir /etc/relocator
# Equal machines would be one to libvirt, and to journald.
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
echo "$name" >/etc/hostname
export container=relocator
exec /lib/systemd/systemd --unit=basic.target --show-status=no --log-target=console --log-level=notice
