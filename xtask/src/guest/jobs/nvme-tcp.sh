# Linux's NVMe/TCP host on an export of Outboard: discovery, connections without and with digests,
# verified load, and a target that is restarted and killed under it.
set -e

# The controller of the subsystem and its block device, once they are there.
find_disk() {
    local entry
    controller= disk=
    for _ in $(seq 100); do
        for entry in /sys/class/nvme/nvme*; do
            if [ "$(cat "$entry/subsysnqn")" = "$nqn" ]; then
                controller=/dev/${entry##*/}
            fi
        done
        entry=$(ls /sys/block | grep -E '^nvme[0-9]+n[0-9]+$' || true)
        if [ -n "$controller" ] && [ -b "/dev/$entry" ]; then
            disk=/dev/$entry
            return
        fi
        sleep 0.1
    done
    echo "no namespace of $nqn" >&2
    return 1
}

# Connects with the digests that are asked for, and looks whether it has them. The host sends a
# keep-alive every half of the timeout and connects again after a second.
connect() {
    nvme connect -t tcp -a "$address" -s "$port" -n "$nqn" --nr-io-queues=1 --queue-size=32 \
        --keep-alive-tmo=5 --reconnect-delay=1 --ctrl-loss-tmo=120 "$@"
    find_disk
    echo "connected: $controller $disk"
}

verified_load() {
    fio --filename="$disk" --direct=1 --ioengine=libaio --rw=randwrite --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --eta=never --output=/tmp/fio.out \
        --name=small --bs=4k --iodepth=16 --size=3m --fsync=64 \
        --name=large --bs=128k --iodepth=4 --offset=16m --size=6m
    grep -E '^ +(READ|WRITE):' /tmp/fio.out
    [ "$(grep -cE '^ +(READ|WRITE):.* io=9216KiB' /tmp/fio.out)" = 2 ]
}

is_zero() {
    dd if="$disk" iflag=direct bs=1M skip="$1" count="$2" status=none |
        cmp -n "$(($2 << 20))" - /dev/zero
}

modprobe -a virtio_net nvme_tcp
ip link set eth0 up
ip address add 10.99.0.2/24 dev eth0
ask address
read -r address port nqn <<<"$ANSWER"

step "discover"
nvme discover -t tcp -a "$address" -s "$port" | tee /tmp/discovered
grep -q "subnqn: *$nqn\$" /tmp/discovered

step "connect, identify, log pages"
connect
nvme id-ctrl "$controller" | grep -E '^(sn|mn|fr|mdts|cntlid|ver|oncs|sgls|subnqn|ioccsz|kas) '
nvme id-ns "$disk" | grep -E '^(nsze|ncap|nsfeat|lbaf|nguid|eui64|dlfeat) '
nvme list-subsys
nvme smart-log "$controller" | head -n 12
nvme error-log "$controller" | head -n 4
nvme fw-log "$controller" | head -n 4

# A command that must be refused, and with this status (bit 14: do not retry).
refused() {
    local status=$1
    shift
    if "$@" >/tmp/refused 2>&1; then
        echo "not refused: $*" >&2
        return 1
    fi
    if ! grep -qiE "\\(0x(40*)?$status\\)" /tmp/refused; then
        echo "refused otherwise: $*" >&2
        cat /tmp/refused >&2
        return 1
    fi
}

# Invalid Command Opcode is 01h, Invalid Field 02h, Invalid Log Page 109h (Base 2.0, 3.3.3.2.1).
step "commands that are not offered"
for opcode in 0x0d 0x11 0x80 0x81 0x84 0xc5; do
    refused 1 nvme admin-passthru "$controller" --opcode=$opcode
done
for opcode in 0x04 0x0d 0x7d 0x91; do
    refused 1 nvme io-passthru "$disk" --opcode=$opcode --namespace-id=1
done
refused 2 nvme get-feature "$controller" --feature-id=0x7e
refused 109 nvme get-log "$controller" --log-id=0x7e --log-len=512
nvme smart-log "$controller" >/dev/null

step "verified load without digests"
verified_load

step "discard, write zeroes, reset"
blkdiscard --force --offset 16M --length 4M "$disk"
blkdiscard --force --zeroout --offset 16M --length 6M "$disk"
is_zero 16 6
nvme reset "$controller"
verified_load

step "disconnect"
nvme disconnect -n "$nqn"

step "verified load with digests"
connect --hdr-digest --data-digest
verified_load
blkdiscard --force --zeroout --offset 16M --length 6M "$disk"
is_zero 16 6

# Load at a rate that keeps it running for seconds.
paced_load() {
    fio --filename="$disk" --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 \
        --do_verify=1 --eta=never --output="/tmp/fio.$1" --name=load --rw="$1" --bs=4k \
        --iodepth=16 --size=8m --rate_iops=500
}

step "target stopped and killed under verified load"
paced_load randwrite &
load=$!
sleep 1.5
ask restart target
sleep 2
ask kill target
wait $load
grep -E '^ +(READ|WRITE):' /tmp/fio.randwrite
[ "$(grep -cE '^ +(READ|WRITE):.* io=8192KiB' /tmp/fio.randwrite)" = 2 ]

step "target killed under the load's second reading"
paced_load randread &
load=$!
sleep 1.5
ask kill target
wait $load
grep -E '^ +READ:.* io=8192KiB' /tmp/fio.randread
dmesg | grep 'nvme nvme' | tail -n 20
[ "$(dmesg | grep -c 'Successfully reconnected')" = 3 ]
nvme disconnect -n "$nqn"

# A target that dies costs what is in flight, and that may be a keep-alive.
step "the kernel's complaints"
if dmesg | grep -E 'nvme|blk' | grep -E 'rror|unsupported|invalid|nvalid' |
    grep -vE 'starting error recovery|keep_alive'; then
    exit 1
fi
