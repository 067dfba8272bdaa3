# SPDX-License-Identifier: MIT
# What a conversion leaves behind: one note for each kind, the same in JSON, and --strict refuses before anything is made. The table says which
# kinds each pair of formats leaves.
need qemu-img qemu-io

gen() { /usr/bin/python3 -B - "$@"; }
kinds() { json '" ".join(sorted(l["kind"] + ("*" if l["content"] else "") for l in d["left_behind"])) or "nothing"'; }

# One source of each format, with all that the format can hold.
imgtool create -q base.limg 3M
imgtool create -q -b base.limg s.limg
random_bytes 1 70000 >junk
imgtool write -q s.limg --offset 5000 <junk
imgtool snapshot create -q s.limg@one
imgtool snapshot create -q s.limg@two
imgtool convert -q -c zlib s.limg s.qcow2
imgtool snapshot create -q s.qcow2@one
imgtool bitmap add -q s.qcow2 backup
imgtool create -q -f vdi s.vdi 3M
gen <<'PY'
with open('s.vdi', 'r+b') as f:
    f.seek(72 + 12)
    f.write(b'the disk of the shop')
PY
imgtool create -q -f vdi -b s.vdi child.vdi
qemu-img create -q -f vpc s.vhd 3M
qemu-img create -q -f vpc -o force_size=on exact.vhd 3M
# Virtual PC's size by geometry, where the footer says another
gen <<'PY'
import struct
d = bytearray(open('s.vhd', 'rb').read())
for at in 0, len(d) - 512:
    foot = bytearray(d[at:at + 512])
    foot[28:32] = b'vpc '
    foot[48:56] = struct.pack('>Q', 4 << 20)
    foot[64:68] = bytes(4)
    foot[64:68] = struct.pack('>I', ~sum(foot) & 0xffffffff)
    d[at:at + 512] = foot
open('two-sizes.vhd', 'wb').write(d)
PY
gen "$SRCDIR/tests/images/gen" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import vhdx_image
open('s.vhdx', 'wb').write(vhdx_image.Vhdx(3 << 20, sector=4096).build())
PY
gen <<'PY'
import struct
d = bytearray(open('s.qcow2', 'rb').read(65536))
at = struct.unpack_from('>I', d, 100)[0]
d[at:] = (struct.pack('>II', 0x12345678, 8) + b'whatever' + d[at:])[:65536 - at]
with open('s.qcow2', 'r+b') as f:
    f.write(d)
PY
head -c 65536 junk >s.raw
qemu-img create -q -f vmdk -o adapter_type=lsilogic s.vmdk 20M
imgtool convert -q -f raw -O vmdk -o subformat=streamOptimized s.raw packed.vmdk
cp s.raw odd.raw && head -c 3 junk >>odd.raw

echo "content is marked by *"
for source in s.raw odd.raw s.limg s.qcow2 s.vdi child.vdi s.vhd exact.vhd two-sizes.vhd s.vhdx s.vmdk packed.vmdk; do
	for format in raw limg qcow2 vdi vhd vhdx vmdk parallels; do
		imgtool convert --json --force -O $format $source t.$format 2>notes >answer || fail "$source to $format: $(cat notes)"
		printf '%-14s %-6s %s\n' $source $format "$(kinds <answer)"
		# as many notes as entries, but for one that says the obvious
		want=$(json 'sum(l["kind"] != "compression" or l["can_be_kept"] for l in d["left_behind"])' <answer)
		[[ $(grep -c ': note: ' notes) == "$want" && $(grep -vc -e ': note: ' -e 'which it names' notes) == 0 ]] || fail "$source to $format: $(cat notes)"
		json '[l["kind"] for l in d["left_behind"]]' <answer >all
		# strict: whatever is told is refused, once, and nothing is made
		rm t.$format
		status=0
		imgtool convert -q --strict=all -O $format $source t.$format 2>err || status=$?
		if grep -q '\[\]' all; then
			[[ $status == 0 && -e t.$format ]] || fail "--strict=all $source to $format"
		else
			[[ $status == 6 && ! -e t.$format && $(wc -l <err) == 1 ]] || fail "--strict=all $source to $format: $(cat err)"
		fi
		rm -f t.$format
		status=0
		imgtool convert -q --strict -O $format $source t.$format 2>err || status=$?
		[[ $status == "$(json '6 if any(l["content"] for l in d["left_behind"]) else 0' <answer)" ]] || fail "--strict $source to $format: $status"
		rm -f t.$format
	done
done

run imgtool convert -O raw s.qcow2 t.raw --force
run imgtool convert -O qcow2 s.qcow2 t.qcow2 --force
run imgtool convert --snapshots --bitmaps -c zlib -O qcow2 s.qcow2 t.qcow2 --force
run imgtool convert -O raw s.limg t.raw --force
run imgtool convert -O vdi s.vdi t.vdi --force
run imgtool convert --json -O vdi -o uuid="$(imgtool info --json s.vdi | json 'd["uuid"]')" s.vdi t.vdi --force
run imgtool convert -O raw s.vhdx t.raw --force
run imgtool convert -O raw two-sizes.vhd t.raw --force
run imgtool convert -O vhd -o align=1M s.raw t.vhd --force
run imgtool convert -O raw odd.raw t.raw --force
run imgtool convert -q -O raw odd.raw t.raw --force
run imgtool convert --strict -O raw odd.raw strict.raw
run imgtool convert --strict -O raw s.qcow2 strict.raw
run imgtool convert --strict=all -O raw s.qcow2 strict.raw
run imgtool convert --strict=some -O raw s.qcow2 strict.raw
run imgtool convert --strict --snapshots --bitmaps -O qcow2 s.qcow2 strict.qcow2
run imgtool convert --strict --snapshots -O limg s.limg strict.limg

run imgtool convert -O vmdk s.vmdk t.vmdk --force
run imgtool convert -O vmdk -o subformat=streamOptimized s.qcow2 t.vmdk --force

# A parent that stays one is not left behind.
run imgtool convert --json -O limg -b base.limg s.limg over.limg
run ls strict.raw

# Where there is a machine in it.
imgtool create -q m.qcow2 1M
qemu-io -c 'write -q -b 0 64K' m.qcow2
imgtool snapshot create -q m.qcow2@running
run imgtool convert --json --snapshots -O limg m.qcow2 m.limg

# Without a name the format comes from the name.
for name in n.vdi n.VHD n.qcow2 n.raw n.img n.disk; do
	imgtool convert -q s.raw $name
	echo "$name: $(imgtool info --json $name | json 'd["format"]')"
done
run imgtool convert s.raw n.dmg
