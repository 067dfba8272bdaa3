# Machine state in qcow2 is kept over everything that happens to other snapshots, and over a revert to its own.
need qemu-img qemu-io

judged()
{
	qemu-img check -q "$1" >judge.log 2>&1 || { cat judge.log; fail "qemu-img check finds fault with $1"; }
	expect 0 imgtool check -q "$1"
	rm judge.log
}

# A machine's state lies behind the disk, at the next boundary of an L2 table (512 MiB). So it can be made, and looked at,
# without a machine: write there while the disk is larger.
# disk_size FILE HEAD_BYTES SNAPSHOT DISK_BYTES VM_BYTES: says so in the header and in the snapshot's entry.
disk_size()
{
	/usr/bin/python3 - "$@" <<'PY'
import struct, sys
name, head, snap, disk, vm = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
with open(name, "r+b") as f:
    f.seek(24)
    f.write(struct.pack(">Q", head))
    f.seek(60)
    nr, at = struct.unpack(">IQ", f.read(12))
    for _ in range(nr):
        f.seek(at)
        _, _, ids, names, _, _, _, _, extra = struct.unpack(">QIHHIIQII", f.read(40))
        f.seek(at + 40 + extra + ids)
        if f.read(names).decode() == snap:
            f.seek(at + 32)
            f.write(struct.pack(">I", vm))
            f.seek(at + 40)
            f.write(struct.pack(">QQ", vm, disk))
            break
        at += (40 + extra + ids + names + 7) // 8 * 8
    else:
        sys.exit("no such snapshot")
PY
}

disk=$((512 << 20)) vm=3000000
random_bytes 34 $vm >vm.bin

# state_kept FILE SNAPSHOT
state_kept()
{
	local copy=copy.qcow2
	cp "$1" $copy
	qemu-img resize -q --shrink -f qcow2 $copy $((disk * 2))
	disk_size $copy $((disk * 2)) "$2" $((disk * 2)) 0
	qemu-img convert -U -f qcow2 -O raw -l "snapshot.name=$2" $copy copy.raw
	cmp -n $vm -i $disk:0 copy.raw vm.bin || fail "the machine state of $2 is lost"
	rm copy.qcow2 copy.raw
}

vm_sizes()
{
	imgtool snapshot list --json "$1" | json '[(s["name"], s["vmstate_size"]) for s in d["snapshots"]]'
	qemu-img info --output=json "$1" | json '[(s["name"], s["vm-state-size"]) for s in d["snapshots"]]'
}

qemu-img create -q -f qcow2 m.qcow2 1G
random_bytes 35 2000000 >disk.bin
imgtool write m.qcow2 --offset 1M <disk.bin
imgtool write m.qcow2 --offset 512M <vm.bin
qemu-img snapshot -c running m.qcow2
disk_size m.qcow2 $disk running $disk $vm
judged m.qcow2
vm_sizes m.qcow2
state_kept m.qcow2 running
first=$(imgtool checksum -q m.qcow2)
imgtool info --json m.qcow2 | json 'd["virtual_size"]'

imgtool write m.qcow2 --offset 200M <disk.bin
run imgtool snapshot create m.qcow2@other
judged m.qcow2
run imgtool snapshot create m.qcow2@third
vm_sizes m.qcow2
state_kept m.qcow2 running
run imgtool revert m.qcow2@running
judged m.qcow2
same head "$(imgtool checksum -q m.qcow2)" "$first"
state_kept m.qcow2 running
run imgtool revert m.qcow2@other
judged m.qcow2
state_kept m.qcow2 running
run imgtool snapshot rename m.qcow2@running booted
run imgtool snapshot delete m.qcow2@other
judged m.qcow2
state_kept m.qcow2 booted
run imgtool resize m.qcow2 2G
judged m.qcow2
# The state does not become part of a disk that grows over its place.
imgtool read m.qcow2 --offset 512M --length 4M >piece
cmp -n 4194304 piece /dev/zero
state_kept m.qcow2 booted
qemu-img snapshot -a booted m.qcow2
judged m.qcow2
same head "$(imgtool checksum -q m.qcow2)" "$first"
# Nor does what qemu-img leaves behind the disk when it goes back.
run imgtool resize m.qcow2 2G
imgtool read m.qcow2 --offset 512M --length 4M >piece
cmp -n 4194304 piece /dev/zero
judged m.qcow2
state_kept m.qcow2 booted
run imgtool revert m.qcow2@booted
vm_sizes m.qcow2

echo "== carried over"
run imgtool convert --snapshots -O limg m.qcow2 m.limg
imgtool snapshot list --json m.limg | json '[(s["name"], s["vmstate_size"], s["virtual_size"]) for s in d["snapshots"]]'
run imgtool convert --snapshots -O qcow2 m.limg back.qcow2
judged back.qcow2
vm_sizes back.qcow2
state_kept back.qcow2 booted
run imgtool compare m.qcow2@booted back.qcow2@booted

# A disk that is said to be larger than all tables can map costs no time.
cp back.qcow2 large.qcow2
disk_size large.qcow2 $disk third $((1 << 62)) 0
imgtool snapshot list --json large.qcow2 | json '[(s["name"], s["virtual_size"]) for s in d["snapshots"]]'
run timeout 60 "${tool[@]}" snapshot diff large.qcow2@booted large.qcow2@third | sed "s|^\$ timeout 60 .* snapshot|$ imgtool snapshot|"
run imgtool revert large.qcow2@third

run imgtool snapshot delete m.qcow2@booted
run imgtool snapshot delete m.qcow2@third
judged m.qcow2
same head "$(imgtool checksum -q m.qcow2)" "$first"
