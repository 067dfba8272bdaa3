# Overlays: what is recorded of the parent is kept by qemu-img and noticed by us; other programs never read the wrong content.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" | cut -d' ' -f1; }
judged()
{
	qemu-img check -q "$1" >log 2>&1 || { cat log; fail "qemu-img check"; }
	expect 0 imgtool check -q "$1"
	qemu-img convert -O raw "$1" judge.raw
	same "qemu-img's content" "$(digest -f raw judge.raw)" "$(digest "$1")"
	rm judge.raw
}
backing() { qemu-img info --output=json "$1" | json 'd.get("backing-filename"), d.get("backing-filename-format")'; }
pin() { imgtool info --json "$1" | json 'd["backing"] and (d["backing"]["pin"], d["backing"]["format"], d["backing"]["snapshot"])'; }

random_bytes 54 5000000 >base.raw
imgtool convert -q base.raw base.qcow2
cp -p base.qcow2 kept.qcow2
for options in compat=1.1 compat=0.10 cluster_size=512; do
	imgtool create --force -o $options -b base.qcow2 a.qcow2
	backing a.qcow2
	pin a.qcow2
	imgtool write -q a.qcow2 --offset 1M <<<"of the overlay"
	judged a.qcow2
	# A change of the parent is noticed; qemu-img goes on with what is there.
	qemu-io -f qcow2 -c 'write -q -P 1 2M 64k' base.qcow2 >log
	run imgtool checksum a.qcow2
	qemu-img convert -O raw a.qcow2 qemu.raw && echo "qemu-img: no complaint"
	cp -p kept.qcow2 base.qcow2
	judged a.qcow2
	# qemu-img's own header update keeps our record, until it names another parent.
	qemu-io -f qcow2 -c 'write -q -P 2 3M 64k' a.qcow2 >log
	[[ $options == compat=0.10 ]] || qemu-img bitmap --add a.qcow2 b
	pin a.qcow2
	qemu-img rebase -u -b ./base.qcow2 -F qcow2 a.qcow2
	pin a.qcow2
	judged a.qcow2
	run imgtool rebase -q -b base.qcow2 a.qcow2
	pin a.qcow2
	judged a.qcow2
	[[ $options == compat=0.10 ]] || qemu-img bitmap --remove a.qcow2 b
done

# Commit, both ways round.
imgtool create --force -b base.qcow2 a.qcow2
random_bytes 55 900000 | imgtool write -q a.qcow2 --offset 200000
want=$(digest a.qcow2)
run imgtool commit -q a.qcow2
same "the parent" "$(digest base.qcow2)" "$want"
same "the overlay" "$(digest a.qcow2)" "$want"
judged base.qcow2
judged a.qcow2
imgtool map --json a.qcow2 | json '{e["depth"] for e in d["extents"]}' 2>/dev/null
qemu-io -f qcow2 -c 'write -q -P 3 1M 1M' a.qcow2 >log
want=$(digest a.qcow2)
qemu-img commit -q a.qcow2
same "the parent" "$(digest base.qcow2)" "$want"
run imgtool checksum a.qcow2
run imgtool rebase -q --unsafe -b base.qcow2 a.qcow2
same "the overlay" "$(digest a.qcow2)" "$want"
run imgtool flatten -q a.qcow2
same "flattened" "$(digest a.qcow2)" "$want"
judged a.qcow2

# A snapshot as parent: qcow2 cannot say that, so that others must refuse instead of reading the head.
imgtool convert -q base.raw p.limg
imgtool convert -q base.raw p.qcow2
for parent in p.limg p.qcow2; do
	imgtool snapshot create $parent@golden
	want=$(digest $parent@golden)
	imgtool write -q $parent --offset 0 <<<"the head moved on"
	run imgtool create --force -b $parent@golden s.qcow2
	pin s.qcow2
	backing s.qcow2
	same "on a snapshot" "$(digest s.qcow2)" "$want"
	! qemu-img convert -O raw s.qcow2 x.raw 2>log || fail "qemu-img read the head"
	sed 's/.*: //' log
done

# No format on record: looked for, never raw.
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 n.qcow2
qemu-img create -q -f qcow2 n2.qcow2 5000192
imgtool amend -o backing_file=base.qcow2 n2.qcow2
pin n2.qcow2
same "format found" "$(digest n2.qcow2)" "$(digest base.qcow2)"
imgtool amend -o backing_file=base.raw n2.qcow2
run imgtool checksum n2.qcow2
run imgtool rebase -q --unsafe -b base.raw -F raw n2.qcow2
same "format recorded" "$(digest n2.qcow2)" "$(truncate -s %512 base.raw && sha base.raw)"

# The longest name.
name=$(printf 'n%.0s' {1..250})
long=$name/$name/$name
mkdir -p "$long"
cp base.qcow2 "$long/base.qcow2"
for options in compat=1.1 cluster_size=512 cluster_size=2M; do
	run imgtool create --force -o $options -b "$long/base.qcow2" l.qcow2 2>&1 | sed "s/n\{20,\}/NAME/g"
	[[ $options == cluster_size=512 ]] && continue
	judged l.qcow2
	run imgtool rebase -q -b "./$long/base.qcow2" l.qcow2 2>&1 | sed "s/n\{20,\}/NAME/g"
	judged l.qcow2
	run imgtool rebase -q -b base.qcow2 l.qcow2
	judged l.qcow2
done
