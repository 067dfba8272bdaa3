# A machine from its start to each of its ends.
. "$SRCDIR/tests/cli/guest.sh"
imgtool create a.limg 1M

start a.limg
hear READY
tell 'hallo'
hear hallo
# it holds the image
expect 5 imgtool write a.limg </dev/null
expect 5 imgvm run --bios guest.rom a.limg </dev/null
imgvm status a.limg | times
[[ $(imgvm status --json a.limg | json 'd["state"], d["memory"], d["vcpus"], len(d["disks"]), d["disks"][0]["format"]') \
	== "('running', 8388608, 1, 1, 'limg')" ]] || fail "status: $(imgvm status --json a.limg)"
run imgvm pause a.limg
tell 'soon'
sleep 0.2
! grep -q soon serial || fail "it is not paused"
[[ $(imgvm status --json a.limg | json 'd["state"]') == paused ]]
run imgvm resume a.limg
hear soon
run imgvm powerdown a.limg
tell q
ends 0
grep -o '"event":"[a-z_]*"' log
[[ -z $(find runtime/imgvm -name "*sock*") ]] || fail "a socket is left: $(ls runtime/imgvm)"

echo "# ends"
start a.limg
imgvm quit a.limg
ends 8
start a.limg
kill -TERM "$machine"
ends 8
start a.limg
kill -HUP "$machine"
ends 8
start --timeout 1 a.limg
ends 9
start --no-reboot a.limg
hear READY
tell r
ends 10
start a.limg
hear READY
tell r
wait_for 20 eval '[[ $(grep -c READY serial) == 2 ]]'
run imgvm reset a.limg
wait_for 20 eval '[[ $(grep -c READY serial) == 3 ]]'
tell x
ends 11
grep -q '"error"' log

echo "# without a terminal, without events"
printf 'abcq' | imgvm run --bios guest.rom --memory 8M --timeout 100 a.limg | tr -d '\r'
run imgvm run --memory 8M --bios nothing.rom a.limg </dev/null
run imgvm run --memory 8M --bios guest.rom nothing.limg </dev/null
run imgvm run --memory 8M --bios guest.rom a.limg@nothing </dev/null

echo "# a guest that prints without end"
start a.limg
hear READY
tell f
wait_for 60 eval '(($(stat -c %s serial) > 200000))'
imgvm status a.limg >/dev/null
imgvm snapshot --json a.limg@flood >/dev/null
imgvm revert --json a.limg@flood >/dev/null
tell z
wait_for 20 eval '[[ $(stat -c %s serial) == $(sleep 0.3; stat -c %s serial) ]]'
imgvm quit a.limg
ends 8
# and to a reader that does not read
mkfifo stalled
exec 8<>stalled
start --serial stalled a.limg
tell f
sleep 1
imgvm status a.limg >/dev/null
imgvm snapshot --json a.limg@stalled >/dev/null
imgvm quit a.limg
ends 8
exec 8>&-

echo "# sandbox"
start --sandbox off a.limg
[[ $(imgvm status --json a.limg | json 'd["sandbox"]["seccomp"] or d["sandbox"]["landlock"]') == False ]]
imgvm quit a.limg
ends 8

echo "# disks of other formats, read-only, transient"
imgtool create b.qcow2 1M
imgtool create -f raw c.raw 1M
before=$(sha a.limg)
start --read-only -d b.qcow2 -d raw:c.raw a.limg
[[ $(imgvm status --json a.limg | json '[(x["format"], x["read_only"]) for x in d["disks"]]') == \
	"[('limg', True), ('qcow2', True), ('raw', True)]" ]]
expect 5 imgtool snapshot create a.limg@x
imgvm quit a.limg
ends 8
start --transient --scratch . a.limg
expect 3 imgvm status --pid 1 a.limg
imgvm status --pid "$machine" a.limg >/dev/null
imgvm quit a.limg
ends 8
same "a.limg" "$(sha a.limg)" "$before"

echo "# limits: of the image's own chain, whatever is put on top of it"
imgtool create -b a.limg over.limg
run imgvm run --limit depth=1 over.limg </dev/null
run imgvm run --limit virtual-size=512K --transient over.limg </dev/null
run imgvm run --limit depth over.limg </dev/null
start --transient --scratch . --limit depth=2 --limit references=1 over.limg
imgvm quit --pid "$machine" over.limg
ends 8
