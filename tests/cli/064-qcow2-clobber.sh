# SPDX-License-Identifier: MIT
# qemu-img create and convert replace whatever file there is. We do not, unless told so, and then only by a whole image.
need qemu-img
random_bytes 1 200000 >precious.qcow2
before=$(sha precious.qcow2)
cp precious.qcow2 theirs.qcow2
run qemu-img create -q -f qcow2 theirs.qcow2 1M
[[ $(sha theirs.qcow2) != "$before" ]] && echo "qemu-img: gone"
run imgtool create precious.qcow2 1M
same precious "$(sha precious.qcow2)" "$before"

imgtool create a.qcow2 1M
cp precious.qcow2 theirs.qcow2
run qemu-img convert -O qcow2 a.qcow2 theirs.qcow2
[[ $(sha theirs.qcow2) != "$before" ]] && echo "qemu-img: gone"
run imgtool convert a.qcow2 precious.qcow2
same precious "$(sha precious.qcow2)" "$before"

# A conversion that fails half way: the old file is still there.
truncate -s 1M broken.raw
run imgtool convert --force -b nowhere.qcow2 broken.raw precious.qcow2
same precious "$(sha precious.qcow2)" "$before"
run imgtool create --force precious.qcow2 1M
run qemu-img check -q precious.qcow2
run ls
