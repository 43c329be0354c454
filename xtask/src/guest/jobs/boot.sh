# The guest's own devices and drivers, without anything of Outboard.
set -e
step "modules and programs"
modprobe -a virtio_blk virtio_net nvme_tcp ext4
fio --version
nvme version
mke2fs -V
step "a file system in memory"
dd if=/dev/urandom of=/tmp/a bs=64k count=16 status=none
sha256sum /tmp/a >/tmp/sums
sha256sum -c /tmp/sums
