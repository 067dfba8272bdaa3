# Snapshots of a running machine, by imgvm and by imgtool, and the ways back: memory and disk together.
. "$SRCDIR/tests/cli/guest.sh"
imgtool create a.limg 1M

start a.limg
hear READY
tell '+++?'
hear 3
run imgvm snapshot a.limg@three | times
tell '+?'
hear 4
run imgtool snapshot create a.limg@four | times
run imgvm snapshot --disk-only a.limg@disk | times
run imgvm snapshot a.limg@three
imgtool snapshot list --json a.limg | json '[(x["name"], x["vmstate_size"] > 0) for x in d["snapshots"]]'
tell '+?'
hear 5

echo "# back, and again"
run imgvm revert a.limg@three | times
tell '?'
hear '3.*4.*5.*3'
run imgtool revert a.limg@four | times
tell '?'
hear '3.*4.*5.*3.*4'
run imgtool revert --save now a.limg@nothing
run imgtool revert --save now a.limg@three | times
run imgtool snapshot rename a.limg@now later
run imgvm rename a.limg@later sometime
run imgvm delete a.limg@four
run imgtool snapshot delete a.limg@disk
run imgtool snapshot delete a.limg@disk
imgtool snapshot list --json a.limg | json '[x["name"] for x in d["snapshots"]]'
{ kill -KILL "$machine" && wait "$machine"; } 2>/dev/null || true
exec 7>&-
expect 0 imgtool check -q a.limg

echo "# resumed"
imgtool revert a.limg@sometime
start a.limg@sometime
grep -o '"resumed":[a-z]*' log
tell '?'
hear 4
imgvm status a.limg | grep snapshot
wait_for 20 grep -q verified log
tell q
ends 0
start a.limg@three --revert
tell '?'
hear 3
# two of one snapshot
expect 6 imgvm run --bios guest.rom --transient a.limg@three </dev/null
grep -q allow-clone err || cat err
expect 9 imgvm run --bios guest.rom --transient --allow-clone --timeout 1 a.limg@three </dev/null
imgvm quit a.limg
ends 8
# the disk is another one since: nothing is thrown away by the way
printf x | imgtool write -q a.limg
expect 6 imgvm run --bios guest.rom a.limg@three </dev/null
cat err
expect 2 imgvm run --bios guest.rom --revert --memory 16M a.limg@three </dev/null
cat err
start --transient a.limg@three
tell '?'
hear 3
imgvm quit a.limg
ends 8
imgtool read a.limg --length 1
echo

echo "# damaged memory"
cp a.limg bad.limg
at=$(LC_ALL=C grep -obUaP '\xf4{4096}' bad.limg | sed -n '1s,:.*,,p')
flip bad.limg $((at + 100))
expect 4 imgvm run --bios guest.rom --timeout 60 --revert --json bad.limg@three </dev/null
sed 's/ (offset.*//' err
grep -o '"event":"[a-z_]*"' out

echo "# other formats hold disks"
imgtool create b.qcow2 1M
start b.qcow2
hear READY
run imgvm snapshot b.qcow2@one
run imgtool snapshot create b.qcow2@one | times
run imgvm revert b.qcow2@one | times
wait_for 20 eval '[[ $(grep -c READY serial) == 2 ]]'
imgvm quit b.qcow2
ends 8
expect 0 imgtool check -q b.qcow2
