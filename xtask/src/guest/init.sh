#!/usr/bin/bash
# First program of a guest. The first serial line is the console; the second one, `control`, leads
# to `cargo xtask guest`, a line at a time:
#
#   guest -> host   boot | step TEXT | ask VERB [WORDS] | exit CODE
#   host -> guest   NUMBER of this boot, from 1 (after boot) | ok [WORDS] or failed WHY (after ask)
#
# The job comes as firmware configuration of QEMU and runs under bash with the functions below.
# Whatever ends without `exit CODE` has failed.

export PATH=/usr/sbin:/usr/bin:/busybox HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
/usr/bin/busybox --install -s /busybox
ln -sf /proc/self/fd /dev/fd
# A reader of the console sees lines of the kernel from warnings upwards only.
dmesg -n 4

exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo

# Tells the host what comes now; it shows how long it took.
step() {
    echo "== $*"
    echo "step $*" >&3
}

# Has the host do something and waits; its answer stands in $ANSWER. The job ends if it cannot.
ask() {
    local verdict
    echo "ask $*" >&3
    read -r -u 3 verdict ANSWER
    if [ "$verdict" != ok ]; then
        echo "host: $verdict $ANSWER"
        leave 1
    fi
}

# Starts the machine again; the job begins anew with the next $BOOT.
start_again() {
    sync
    ask reboot
    reboot -f
    sleep 60
}

# Ends the job and the machine.
leave() {
    sync
    echo "exit $1" >&3
    sleep 0.1
    poweroff -f
    sleep 60
}

modprobe -a virtio_pci qemu_fw_cfg
ip link set lo up
echo boot >&3
read -r -u 3 BOOT
echo "== boot $BOOT, Linux $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
export BOOT
export -f step ask start_again leave
cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.outboard/job/raw >/run/job
bash -u -o pipefail /run/job
leave $?
