# SPDX-License-Identifier: MIT
# Files that were cut off inside a block: what is there of it is read and outlives a repair, and nobody writes before that.
random_bytes 134 4194304 >junk
there=$((4194304 - 30208))

for kind in vdi parallels vhd vhdx; do
	[[ $kind == vhdx ]] && options=(-o block_size=1M) || options=()
	imgtool create -q -f $kind "${options[@]}" a.$kind 8M
	imgtool write -q a.$kind <junk
	truncate -s -30208 a.$kind
	run imgtool check a.$kind
	imgtool read a.$kind --length $there | cmp -n $there - junk || fail "$kind: what is there cannot be read"
	cp a.$kind before
	run imgtool write a.$kind --offset 6M <<<'to where the entry leads'
	cmp a.$kind before
	run imgtool check --repair a.$kind
	run imgtool check -q a.$kind
	imgtool read a.$kind >have
	cmp -n $there have junk || fail "$kind: the repair lost what was there"
	run imgtool write -q a.$kind --offset 6M <<<new
	run imgtool check -q a.$kind
done

# A file that ends before the place of a block: nothing of it is there.
imgtool create -q -f vhd b.vhd 64M
for at in 0 10 20 30; do head -c 2M junk | imgtool write -q b.vhd --offset ${at}M; done
truncate -s 4200000 b.vhd
run imgtool check b.vhd
run imgtool write b.vhd --offset 40M <<<'to where two entries lead'
run imgtool check --repair b.vhd
run imgtool write -q b.vhd --offset 40M <<<new
run imgtool check -q b.vhd
imgtool read b.vhd --length 2M | cmp -n 2097152 - junk
imgtool read b.vhd --offset 30M --length 2M | cmp -n 2097152 - /dev/zero
