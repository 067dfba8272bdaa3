# SPDX-License-Identifier: MIT
# Dirty bitmaps: what changed since when. Kept by QEMU and by us; after a crash they are not believed, whoever crashed.
need qemu-img qemu-io
imgtool create a.qcow2 16M
run imgtool bitmap list a.qcow2
run imgtool bitmap add a.qcow2 monday
run imgtool bitmap add --granularity 4K --disabled a.qcow2 fine
run imgtool bitmap add a.qcow2 monday
run imgtool bitmap add -g 3K a.qcow2 odd
run imgtool bitmap add -g 256 a.qcow2 tiny
run imgtool bitmap add a.qcow2 ''
random_bytes 1 100000 | imgtool write a.qcow2 --offset 1M
qemu-io -c 'write 5M 64K' a.qcow2 >/dev/null
run imgtool bitmap list a.qcow2
run imgtool bitmap list --json a.qcow2
run imgtool map --bitmap monday a.qcow2
run imgtool map --json --bitmap monday a.qcow2
run imgtool map --json --bitmap fine a.qcow2
run imgtool map --bitmap nonsense a.qcow2
imgtool info a.qcow2 | grep -A 3 ^bitmaps

run imgtool bitmap disable a.qcow2 monday
run imgtool bitmap enable a.qcow2 fine
printf x | imgtool write a.qcow2 --offset 9M
run imgtool bitmap merge a.qcow2 fine monday
run imgtool bitmap clear a.qcow2 monday
run imgtool bitmap list a.qcow2
run imgtool bitmap merge a.qcow2 monday nonsense
imgtool create b.qcow2 8M
imgtool bitmap add b.qcow2 half
run imgtool bitmap merge --from a.qcow2 b.qcow2 half fine
run imgtool map --bitmap half b.qcow2
run qemu-img bitmap --add --merge fine a.qcow2 theirs
imgtool bitmap list --json a.qcow2 | json '[(b["name"], b["dirty_bytes"]) for b in d["bitmaps"]]'
run qemu-img check -q a.qcow2

# The disk changes its size, and goes back in time.
run imgtool resize a.qcow2 100M
run imgtool map --bitmap fine a.qcow2
run imgtool resize --shrink a.qcow2 6M
run imgtool map --bitmap fine a.qcow2
# what was cut off is zeros when it comes back, which the last backup does not know
imgtool bitmap clear a.qcow2 fine
imgtool resize -q --shrink a.qcow2 5M
imgtool resize -q a.qcow2 6M
run imgtool map --bitmap fine a.qcow2
imgtool snapshot create a.qcow2@s
imgtool bitmap clear a.qcow2 fine
run imgtool revert a.qcow2@s
run imgtool map --bitmap fine a.qcow2
run qemu-img check -q a.qcow2
run imgtool check -q a.qcow2

# A writer that is killed: they are in use, and stay so.
mkfifo input
"${tool[@]}" write a.qcow2 <input &
writer=$!
exec 3>input
head -c 4M /dev/zero >&3
wait_for 10 eval 'imgtool info -q -U --json a.qcow2 | grep -q inconsistent'
{ kill -9 $writer; wait $writer; } 2>/dev/null || true
exec 3>&-
run imgtool bitmap list a.qcow2
qemu-img info --output=json a.qcow2 | json '[(b["name"], sorted(b["flags"])) for b in d["format-specific"]["data"]["bitmaps"]]'
run imgtool map --bitmap fine a.qcow2
run imgtool bitmap clear a.qcow2 fine
run imgtool bitmap merge a.qcow2 monday fine
run imgtool convert --bitmaps a.qcow2 c.qcow2
imgtool bitmap list --json c.qcow2 | json '[b["name"] for b in d["bitmaps"]]'
run imgtool bitmap remove a.qcow2 fine
run imgtool bitmap remove a.qcow2 fine
run imgtool bitmap remove a.qcow2 theirs
run imgtool bitmap remove a.qcow2 monday
run imgtool bitmap list a.qcow2
imgtool check -q --repair a.qcow2
run qemu-img check -q a.qcow2

# The same, of QEMU's.
imgtool bitmap add a.qcow2 again
mkfifo commands
qemu-io a.qcow2 <commands >/dev/null 2>&1 &
writer=$!
exec 3>commands
echo 'write 0 64K' >&3
echo 'flush' >&3
wait_for 10 eval 'imgtool info -q -U --json a.qcow2 | grep -q inconsistent'
{ kill -9 $writer; wait $writer; } 2>/dev/null || true
exec 3>&-
run imgtool bitmap list a.qcow2
run imgtool bitmap remove a.qcow2 again

# A writer that does not know them clears the bit that says that they are kept: stale ones are not believed either.
imgtool bitmap add a.qcow2 stale
printf '\0' | dd of=a.qcow2 bs=1 seek=95 conv=notrunc status=none
run imgtool bitmap list a.qcow2
imgtool check a.qcow2 | head -n 1 || true
printf x | imgtool write a.qcow2
run imgtool bitmap list a.qcow2
imgtool check -q --repair a.qcow2
run qemu-img check -q a.qcow2

# Formats without.
imgtool create x.limg 1M
run imgtool bitmap add x.limg b
run imgtool bitmap list x.limg
imgtool create -o compat=0.10 old.qcow2 1M
run imgtool bitmap add old.qcow2 b
expect 1 qemu-img bitmap --add old.qcow2 b
run imgtool bitmap add x.limg@s b
