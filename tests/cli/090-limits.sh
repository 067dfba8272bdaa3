# SPDX-License-Identifier: MIT
# --limit: what an image may cost. Each limit refuses (6) what is above it and says which one, and how to raise it.
imgtool create base.limg 1M
imgtool create -b base.limg mid.limg
imgtool create -f qcow2 -b mid.limg --backing-format limg top.qcow2 -q
imgtool snapshot create mid.limg@one
imgtool snapshot create mid.limg@two
imgtool create -f qcow2 -o data_file=data.raw outside.qcow2 1M
/usr/bin/python3 - <<END
import sys
sys.path.insert(0, "$SRCDIR/tests/images/gen")
import qcow2_hostile
open("bomb.qcow2", "wb").write(qcow2_hostile.CASES["alias-64g"].bytes())
END

run imgtool read -q --limit virtual-size=512K --length 1 mid.limg
run imgtool read -q --limit depth=2 --length 1 top.qcow2
run imgtool read -q --limit references=1 --length 1 top.qcow2
run imgtool read -q --limit references=1 --length 0 outside.qcow2
run imgtool snapshot list -q --limit snapshots=1 mid.limg
run imgtool check --limit snapshots=1 mid.limg
run imgtool info --limit metadata=1K outside.qcow2

# 384 KiB that hold 64 GiB: nothing is damaged, and no verb starts on it
stat -c '%s bytes' bomb.qcow2
run imgtool check bomb.qcow2
for verb in info map checksum; do
	run imgtool $verb bomb.qcow2
done
run imgtool convert -O raw bomb.qcow2 out.raw
[[ ! -e out.raw ]] || fail "something was left"
imgtool read -q --limit expansion=200000 --offset 63G --length 8 bomb.qcow2 | od -An -c

# several at once, with units; together they are enough
expect 0 imgtool read -q --limit depth=3 --limit references=2 --limit snapshots=2 --limit metadata=1M \
	--limit virtual-size=1M --limit check-time=60 --length 1 top.qcow2

# the parent of a new image is opened under the same limits
run imgtool create -b mid.limg --limit snapshots=1 new.limg
run imgtool convert -q -O limg -b mid.limg --limit snapshots=1 base.limg new.limg
run imgtool rebase -q -b mid.limg --limit snapshots=1 base.limg

for wrong in depth depth= depth=0 depth=x =1 deep=1 depth=-1 snapshots=1.5; do
	expect 2 imgtool info --limit "$wrong" base.limg
done
run imgtool info --limit deep=1 base.limg
