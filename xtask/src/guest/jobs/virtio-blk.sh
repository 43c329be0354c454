# virtio-blk on the disks `local` (blocks of 512 bytes) and `remote` (of 4096): verified load, a file
# system with files, a reboot, and after it the same files.
set -e

# The device whose serial number is the disk's name.
device() {
    local entry
    for entry in /sys/block/vd*; do
        if [ "$(cat "$entry/serial")" = "$1" ]; then
            echo "/dev/${entry##*/}"
            return
        fi
    done
    echo "no disk has the serial number $1" >&2
    return 1
}

# The limit that the driver has read from the device.
limit() {
    cat "/sys/block/${1#/dev/}/queue/$2"
}

# Writes a pattern with checksums and reads it back: large blocks, and blocks of the device's smallest
# size in random order.
verified_load() {
    step "$1: verified load"
    fio --filename="$2" --direct=1 --ioengine=libaio --rw=randwrite --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --eta=never --output=/tmp/fio.out \
        --name=small --bs="$(limit "$2" logical_block_size)" --iodepth=16 --size=1m --fsync=256 \
        --name=usual --bs=4k --iodepth=16 --offset=8m --size=7m --fsync=256 \
        --name=large --bs=128k --iodepth=4 --offset=32m --size=16m
    # Read back was as much as was written.
    grep -E '^ +(READ|WRITE):' /tmp/fio.out
    [ "$(grep -cE '^ +(READ|WRITE):.* io=24.0MiB' /tmp/fio.out)" = 2 ]
}

# The daemon with the disks dies, and is stopped, while both are written to. What was in flight is in
# memory that QEMU keeps for the next daemon: the load only pauses. So it does when the target dies.
load_over_death() {
    step "both: the daemon killed and restarted, then the target killed under verified load"
    fio --direct=1 --ioengine=libaio --rw=randwrite --verify=crc32c --verify_fatal=1 \
        --do_verify=1 --eta=never --output=/tmp/fio.out --bs=4k --iodepth=16 --size=4m \
        --rate_iops=400 --name=local --filename="$local_disk" --name=remote \
        --filename="$remote_disk" &
    local load=$!
    sleep 1
    ask kill host
    sleep 0.5
    ask restart host
    sleep 0.5
    ask kill target
    wait $load
    grep -E '^ +(READ|WRITE):' /tmp/fio.out
    [ "$(grep -cE '^ +(READ|WRITE):.* io=8192KiB' /tmp/fio.out)" = 2 ]
}

# Files that exist outside of the disk too, with their checksums.
fill() {
    step "$1: mkfs.ext4, tar, umount, fsck"
    mkfs.ext4 -q -E lazy_itable_init=0 "$2"
    mount -t ext4 "$2" /mnt
    tar -xf /tmp/files.tar -C /mnt
    cp /tmp/sums /mnt/sums
    umount /mnt
    e2fsck -fn "$2"
}

check() {
    step "$1: fsck, mount, checksums"
    e2fsck -fn "$2"
    mount -t ext4 "$2" /mnt
    (cd /mnt && sha256sum --quiet -c sums)
    [ "$(wc -l </mnt/sums)" -gt 20 ]
}

trim() {
    step "$1: discard and write zeroes"
    rm -r /mnt/usr
    [ "$(limit "$2" discard_max_bytes)" -gt 0 ]
    [ "$(limit "$2" write_zeroes_max_bytes)" -gt 0 ]
    fstrim -v /mnt
    umount /mnt
    e2fsck -fn "$2"
    blkdiscard --force --zeroout --offset 1M --length 8M "$2"
    dd if="$2" iflag=direct bs=1M skip=1 count=8 status=none | cmp -n 8388608 - /dev/zero
    blkdiscard --force --offset 16M --length 16M "$2"
}

complaints() {
    step "the kernel's complaints"
    if dmesg | grep -E 'virtio|vd[ab]|EXT4' | grep -E 'rror|not supported|orrupt'; then
        exit 1
    fi
}

modprobe -a virtio_blk ext4
local_disk=$(device local)
remote_disk=$(device remote)
[ "$(limit "$local_disk" logical_block_size)" = 512 ]
[ "$(limit "$remote_disk" logical_block_size)" = 4096 ]

if [ "$BOOT" = 1 ]; then
    verified_load local "$local_disk"
    verified_load remote "$remote_disk"
    load_over_death
    step "files"
    tar -C / -cf /tmp/files.tar usr/sbin usr/lib/modules
    (cd / && find usr/sbin usr/lib/modules -type f -exec sha256sum {} + >/tmp/sums)
    ls -l /tmp/files.tar
    fill local "$local_disk"
    fill remote "$remote_disk"
    complaints
    step "reboot"
    start_again
fi

check local "$local_disk"
trim local "$local_disk"
check remote "$remote_disk"
trim remote "$remote_disk"
complaints
