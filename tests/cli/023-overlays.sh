# Overlays: on a head, on a named snapshot, on raw, on each other. A base that changed is refused.
truncate -s 16M base.raw
random_bytes 16 9000000 | dd of=base.raw bs=64K conv=notrunc status=none
want=$(sha base.raw)
imgtool convert base.raw golden.limg
imgtool snapshot create golden.limg@v1
run imgtool create -b golden.limg@v1 web1.limg
run imgtool create -b golden.limg web2.limg
run imgtool create -b base.raw web3.limg
run imgtool create -F raw -b base.raw web3.limg
run imgtool create -b web1.limg web4.limg
run imgtool create -b nowhere.limg web5.limg
run imgtool create -b golden.limg@nonsense web5.limg
run imgtool create -b golden.limg@v1 small.limg 1M
run imgtool create -b golden.limg@v1 large.limg 20M
for image in web1 web2 web3 web4; do
	same $image "$(content $image.limg)" "$want"
done
imgtool read small.limg | cmp - <(head -c 1M base.raw)
imgtool read large.limg --offset 16M | cmp - <(head -c 4M /dev/zero)
run imgtool info --json web1.limg
run imgtool info web1.limg
imgtool info --chain --json web4.limg | json '[(e["filename"], e["snapshot"], e["format"], e["backing"] and (e["backing"]["name"], e["backing"]["snapshot"], e["backing"]["format"], e["backing"]["pin"])) for e in d["chain"]]'
run imgtool info --chain web3.limg
imgtool write web4.limg --offset 5M <<<"written to the top"
imgtool map web4.limg | awk '$3 == 0 { print $1, $2, $4 }'
same web1 "$(content web1.limg)" "$want"

# info looks at nothing but the file.
need strace
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 strace -f -e trace=open,openat,openat2 -o trace "$IMGTOOL" info web4.limg >/dev/null
grep -c -e golden -e web1 trace || true

# The head of the golden image moves on: web1 and web4 stand on its snapshot, web2 does not.
imgtool write golden.limg --offset 1M <<<"a change"
same web1 "$(content web1.limg)" "$want"
run imgtool read web4.limg --offset 5M --length 19
run imgtool read web2.limg --length 0
run imgtool convert web2.limg x.raw
run imgtool info --chain web2.limg
imgtool info web2.limg | grep backing
touch base.raw
run imgtool read web3.limg --length 0
run imgtool rebase --unsafe -F raw -b base.raw web3.limg
same web3 "$(content web3.limg)" "$want"
run imgtool snapshot delete golden.limg@v1
run imgtool read web1.limg --length 0
run imgtool commit web1.limg
run imgtool read web4.limg --length 0

# An image cannot stand on itself, whatever lies between.
run imgtool rebase -b web3.limg web3.limg
run imgtool rebase --unsafe -b web4.limg web1.limg
run imgtool create --force -b web3.limg web3.limg
imgtool create -b web3.limg web6.limg
# Under valgrind there is no openat2(), and without it no symbolic link is followed.
if [[ ${IMGTOOL_WRAPPER:-} == *valgrind* ]]; then ln web6.limg link.limg; else ln -s web6.limg link.limg; fi
run imgtool rebase -b link.limg web3.limg
run imgtool create --force -b web6.limg web3.limg
run imgtool convert --force -b web6.limg base.raw web3.limg
run imgtool convert --force -F raw -b base.raw base.raw web3.limg
ls

# A snapshot that was renamed is known by its uuid, whatever is called so by now: told is the name that it has.
imgtool create moved.limg 1M
imgtool write moved.limg <<<"as it was"
imgtool snapshot create moved.limg@a
imgtool create -b moved.limg@a on-a.limg
imgtool snapshot rename moved.limg@a b
imgtool write moved.limg <<<"as it is"
imgtool snapshot create moved.limg@a
run imgtool read on-a.limg --length 10
imgtool info --chain on-a.limg | grep -e '^snapshot:' -e '^backing:'
imgtool info --chain --json on-a.limg | json '[(e["filename"], e["snapshot"], e["backing"] and e["backing"]["snapshot"]) for e in d["chain"]]'
