# A file system in an image: broken by a deploy, whole again after the revert. e2fsck is the judge.
PATH=$PATH:/usr/sbin:/sbin
need mkfs.ext4 e2fsck qemu-img
mkdir tree
cp -r "$SRCDIR"/libimg/core tree/ 2>/dev/null
random_bytes 60 5000000 >tree/blob
truncate -s 64M disk.raw
mkfs.ext4 -q -F -d tree disk.raw
imgtool convert -O limg -c zstd disk.raw d.limg
run imgtool compare disk.raw d.limg
run imgtool snapshot create d.limg@before
random_bytes 61 200000 | imgtool write d.limg --offset 0
imgtool convert d.limg broken.raw 2>/dev/null
if e2fsck -fn broken.raw >/dev/null 2>&1; then
	fail "the file system survived"
fi
run imgtool revert d.limg@before
imgtool convert -q d.limg whole.raw
e2fsck -fn whole.raw >/dev/null 2>&1 || fail "e2fsck"
cmp whole.raw disk.raw
qemu-img compare -q -f raw -F raw whole.raw disk.raw
same digest "$(imgtool checksum d.limg | cut -d' ' -f1)" "$(sha disk.raw)"
run imgtool create -f limg -b d.limg@before web1.limg
imgtool info --chain --json web1.limg | json '[e["filename"] for e in d["chain"]]'
sound d.limg web1.limg
