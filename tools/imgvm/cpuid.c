/* SPDX-License-Identifier: MIT */
/*
 * What the guest is told of its processor, and whether another host can keep that promise.
 *
 * The guest gets what KVM supports on this host less what this program does not save: nested virtualization, AMX (needs
 * a permission of the process and grows its state), MPX, the performance counters, last-branch records, processor
 * trace, SGX, shadow stacks, FRED, and every supervisor state component. A machine that is resumed keeps the table that
 * it was started with; what it says of features must be a subset of what is supported here, while ids, cache and
 * topology descriptions are the guest's own.
 *
 * Numbers of leaves and bits: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; KVM's own leaves:
 * Documentation/virt/kvm/x86/cpuid.rst of Linux.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "fail.h"
#include "vm_int.h"

#define BIT(n) (UINT32_C(1) << (n))
#define ALL    UINT32_MAX

#define LEAF_KVM_SIGNATURE UINT32_C(0x40000000)
#define LEAF_KVM_FEATURES  UINT32_C(0x40000001)

enum reg { EAX, EBX, ECX, EDX };

static const char reg_name[4][4] = { "EAX", "EBX", "ECX", "EDX" };

static uint32_t reg_of(const struct kvm_cpuid_entry2 *e, unsigned reg)
{
	const uint32_t value[4] = { e->eax, e->ebx, e->ecx, e->edx };

	return value[reg];
}

static struct kvm_cpuid_entry2 *find(struct cpuid_table *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->nent; i++)
		if (t->entry[i].function == function && t->entry[i].index == index)
			return &t->entry[i];
	return NULL;
}

const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->nent; i++)
		if (t->entry[i].function == function && t->entry[i].index == index)
			return &t->entry[i];
	return NULL;
}

/* ---- what is hidden ---- */

/* Bits that are cleared. A function that is listed with ANY_INDEX and ALL disappears. */
#define ANY_INDEX UINT32_MAX
static const struct {
	uint32_t function, index;
	uint32_t clear[4];
} hidden[] = {
	/* MONITOR (KVM does not block in it), VMX, PDCM (performance counters) */
	{ 0x1, 0, { 0, 0, BIT(3) | BIT(5) | BIT(15), 0 } },
	/* EBX: SGX, MPX, PT. ECX: SHSTK, SGX_LC. EDX: LBR, IBT, AMX_BF16, AMX_TILE, AMX_INT8 */
	{ 0x7, 0, { 0, BIT(2) | BIT(14) | BIT(25), BIT(7) | BIT(30), BIT(19) | BIT(20) | BIT(22) | BIT(24) | BIT(25) } },
	/* EAX: FRED, AMX_FP16. EDX: AMX_COMPLEX, CET_SSS */
	{ 0x7, 1, { BIT(17) | BIT(21), 0, 0, BIT(8) | BIT(18) } },
	{ 0xa, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	/* topology: KVM passes on the number of the host's processor that happened to be asked. cpuid_number() makes it
	 */
	{ 0xb, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	/* state components BNDREGS, BNDCSR; TILECFG, TILEDATA */
	{ 0xd, 0, { BIT(3) | BIT(4) | BIT(17) | BIT(18), 0, 0, 0 } },
	/* XFD; all supervisor components */
	{ 0xd, 1, { BIT(4), 0, ALL, ALL } },
	{ 0xd, 3, { ALL, ALL, ALL, ALL } },
	{ 0xd, 4, { ALL, ALL, ALL, ALL } },
	{ 0xd, 17, { ALL, ALL, ALL, ALL } },
	{ 0xd, 18, { ALL, ALL, ALL, ALL } },
	/* monitoring and allocation of caches, SGX, PT, key locker, LBR, AMX tiles, counters */
	{ 0xf, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x10, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x12, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x14, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x19, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x1c, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x1d, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x1e, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	/* version 2 of the topology: made of leaf 0xb, which Linux takes where this one is empty */
	{ 0x1f, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x23, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	/* SVM, extended counters */
	{ 0x80000001, 0, { 0, 0, BIT(2) | BIT(23) | BIT(24) | BIT(28), 0 } },
	{ 0x8000000a, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x8000001b, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x8000001f, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x80000022, ANY_INDEX, { ALL, ALL, ALL, ALL } },
	{ 0x80000026, ANY_INDEX, { ALL, ALL, ALL, ALL } },
};

/* Bytes of the extended state with every component that is left: what 0xd says in ECX. */
static uint32_t xstate_bytes(const struct cpuid_table *t, uint32_t components)
{
	uint32_t bytes = 576; /* legacy area and header (SDM volume 1, 13.4) */

	for (uint32_t i = 2; i < 32; i++) {
		const struct kvm_cpuid_entry2 *e = cpuid_find(t, 0xd, i);

		if (e && components & BIT(i) && e->ebx + e->eax > bytes)
			bytes = e->ebx + e->eax;
	}
	return bytes;
}

static bool is_zero(const struct kvm_cpuid_entry2 *e)
{
	return !(e->eax | e->ebx | e->ecx | e->edx);
}

void cpuid_hide(struct cpuid_table *t)
{
	struct kvm_cpuid_entry2 *xstate;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < t->nent; i++) {
		struct kvm_cpuid_entry2 *e = &t->entry[i];

		for (size_t j = 0; j < sizeof(hidden) / sizeof(hidden[0]); j++) {
			if (hidden[j].function != e->function ||
			    (hidden[j].index != ANY_INDEX && hidden[j].index != e->index))
				continue;
			e->eax &= ~hidden[j].clear[EAX];
			e->ebx &= ~hidden[j].clear[EBX];
			e->ecx &= ~hidden[j].clear[ECX];
			e->edx &= ~hidden[j].clear[EDX];
		}
		/* a leaf that is not there reads as zeros */
		if (!is_zero(e))
			t->entry[kept++] = *e;
	}
	t->nent = kept;
	xstate = find(t, 0xd, 0);
	if (xstate)
		xstate->ecx = xstate_bytes(t, xstate->eax);
}

/* ---- what this host can give ---- */

int cpuid_read_host(int kvm_fd, struct cpuid_table *out, struct img_error *err)
{
	struct kvm_cpuid_entry2 *e;

	memset(out, 0, sizeof(*out));
	out->nent = VM_MAX_CPUID;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, out) < 0)
		return fail_errno(err, "KVM's table of processor features");
	e = find(out, 1, 0);
	if (!e)
		return fail(err, IMG_E_UNSUPPORTED, "KVM reports no processor features");
	/* the local APIC is KVM's, so x2APIC and the deadline timer are there whatever the host has */
	e->ecx |= BIT(21) | BIT(31);
	if (ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
		e->ecx |= BIT(24);
	cpuid_hide(out);
	return 0;
}

/* ---- ids and topology ---- */

/* Bits that a core's number takes. */
static uint32_t id_bits(unsigned nr_vcpus)
{
	uint32_t bits = 0;

	while ((1u << bits) < nr_vcpus)
		bits++;
	return bits;
}

static struct kvm_cpuid_entry2 *add(struct cpuid_table *t, uint32_t function, uint32_t index)
{
	struct kvm_cpuid_entry2 *e = find(t, function, index);

	if (!e && t->nent < VM_MAX_CPUID) {
		e = &t->entry[t->nent++];
		*e = (struct kvm_cpuid_entry2){ .function = function,
						.index = index,
						.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX };
	}
	return e;
}

/* Leaf 0xb: a level of threads (one a core) and one of cores. */
static void number_levels(struct cpuid_table *t, unsigned index, unsigned nr_vcpus)
{
	const uint32_t type_smt = 1, type_core = 2;

	for (uint32_t level = 0; level < 3; level++) {
		struct kvm_cpuid_entry2 *e = add(t, 0xb, level);

		if (!e)
			return;
		e->eax = level == 1 ? id_bits(nr_vcpus) : 0;
		e->ebx = level == 0 ? 1 : level == 1 ? nr_vcpus : 0;
		e->ecx = level | (level == 0 ? type_smt << 8 : level == 1 ? type_core << 8 : 0);
		e->edx = index;
	}
}

void cpuid_number(struct cpuid_table *t, unsigned index, unsigned nr_vcpus)
{
	uint32_t ids = BIT(id_bits(nr_vcpus));
	struct kvm_cpuid_entry2 *zero = find(t, 0, 0);

	for (uint32_t i = 0; i < t->nent; i++) {
		struct kvm_cpuid_entry2 *e = &t->entry[i];
		/* bits 7:5 of a cache's description: its level. The last one is shared by all */
		uint32_t sharing = (e->eax >> 5 & 7) >= 3 ? ids - 1 : 0;

		switch (e->function) {
		case 0x1: /* EBX: APIC id, ids in the package, CLFLUSH; EDX: HTT */
			e->ebx = (e->ebx & 0xffff) | ids << 16 | (uint32_t)index << 24;
			e->edx = nr_vcpus > 1 ? e->edx | BIT(28) : e->edx & ~BIT(28);
			break;
		case 0x4: /* EAX 31:26 ids of cores, 25:14 ids that share the cache, both less one */
			if (e->eax & 0x1f)
				e->eax = (e->eax & 0x3fff) | sharing << 14 | (ids - 1) << 26;
			break;
		case 0x80000001: /* ECX: CmpLegacy (AMD) where leaf 0x80000008 counts cores */
			e->ecx = nr_vcpus > 1 && e->ecx & BIT(22) ? e->ecx | BIT(1) : e->ecx & ~BIT(1);
			break;
		case 0x80000008: /* ECX (AMD): bits of an id, cores less one */
			e->ecx = e->ecx ? id_bits(nr_vcpus) << 12 | (nr_vcpus - 1) : 0;
			break;
		case 0x8000001d: /* as 0x4 */
			if (e->eax & 0x1f)
				e->eax = (e->eax & 0x3fff) | sharing << 14;
			break;
		case 0x8000001e: /* APIC id; core id, one thread a core; node 0 of one */
			e->eax = index;
			e->ebx = index;
			e->ecx = 0;
			break;
		}
	}
	if (zero && zero->eax >= 0xb)
		number_levels(t, index, nr_vcpus);
}

bool cpuid_same(const struct cpuid_table *a, const struct cpuid_table *b)
{
	for (uint32_t i = 0; i < a->nent && a->nent == b->nent; i++) {
		const struct kvm_cpuid_entry2 *x = &a->entry[i], *y = cpuid_find(b, x->function, x->index);

		if (!y || x->flags != y->flags || x->eax != y->eax || x->ebx != y->ebx || x->ecx != y->ecx ||
		    x->edx != y->edx)
			return false;
	}
	return a->nent == b->nent;
}

/* ---- may a guest that saw one table live with another ---- */

enum kind {
	OWN,   /* ids, counts and descriptions: whatever the guest was told */
	BITS,  /* features: each bit of the guest's must be the host's; `ignore` are no features */
	EQUAL, /* the guest's must be the host's */
};

static const struct rule {
	uint32_t function, index;
	enum kind kind[4];
	uint32_t ignore[4];
} rules[] = {
	{ 0x0, 0, { OWN, EQUAL, EQUAL, EQUAL }, { 0 } }, /* vendor: what is not in any bit differs between them */
	/* ECX: OSXSAVE comes and goes with CR4; EDX: HTT speaks of topology */
	{ 0x1, 0, { OWN, OWN, BITS, BITS }, { 0, 0, BIT(27), BIT(28) } },
	{ 0x2, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x3, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x4, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x5, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x6, 0, { BITS, OWN, BITS, OWN }, { 0 } },
	/* ECX: OSPKE follows CR4, 21:17 are a width */
	{ 0x7, 0, { OWN, BITS, BITS, BITS }, { 0, 0, BIT(4) | UINT32_C(0x1f) << 17, 0 } },
	{ 0x7, 1, { BITS, BITS, BITS, BITS }, { 0 } },
	{ 0x7, 2, { BITS, BITS, BITS, BITS }, { 0 } },
	{ 0xb, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0xd, 0, { BITS, OWN, OWN, BITS }, { 0 } }, /* EBX, ECX: sizes, which follow from the components */
	{ 0xd, 1, { BITS, OWN, BITS, BITS }, { 0 } },
	{ 0xd, ANY_INDEX, { EQUAL, EQUAL, EQUAL, EQUAL }, { 0 } }, /* where a component lies */
	{ 0x15, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x16, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ LEAF_KVM_SIGNATURE, 0, { OWN, EQUAL, EQUAL, EQUAL }, { 0 } },
	{ LEAF_KVM_FEATURES, 0, { BITS, BITS, BITS, OWN }, { 0 } },
	{ 0x80000000, 0, { OWN, OWN, OWN, OWN }, { 0 } },
	/* ECX: CmpLegacy speaks of topology */
	{ 0x80000001, 0, { OWN, OWN, BITS, BITS }, { 0, 0, BIT(1), 0 } },
	{ 0x80000002, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } }, /* name */
	{ 0x80000003, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x80000004, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x80000005, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } }, /* caches */
	{ 0x80000006, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x80000007, 0, { BITS, BITS, OWN, BITS }, { 0 } },
	{ 0x80000008, 0, { OWN, BITS, OWN, OWN }, { 0 } },	  /* EAX: see check_address_bits() */
	{ 0x80000019, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } }, /* TLB */
	{ 0x8000001a, 0, { BITS, BITS, BITS, BITS }, { 0 } },
	{ 0x8000001d, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	{ 0x8000001e, ANY_INDEX, { OWN, OWN, OWN, OWN }, { 0 } },
	/* 31:16 of EBX are a size */
	{ 0x80000021, 0, { BITS, BITS, BITS, BITS }, { 0, ALL, 0, 0 } },
};
/* What nobody here knows: a host that says the same will do the same. */
static const struct rule unknown_leaf = { 0, 0, { EQUAL, EQUAL, EQUAL, EQUAL }, { 0 } };

static const struct rule *rule_for(const struct kvm_cpuid_entry2 *e)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (rules[i].function == e->function && (rules[i].index == ANY_INDEX || rules[i].index == e->index))
			return &rules[i];
	return &unknown_leaf;
}

static int check_entry(const struct cpuid_table *host, const struct kvm_cpuid_entry2 *guest, struct img_error *err)
{
	static const struct kvm_cpuid_entry2 none;
	const struct rule *rule = rule_for(guest);
	const struct kvm_cpuid_entry2 *here = cpuid_find(host, guest->function, guest->index);

	if (!here)
		here = &none;
	for (unsigned reg = EAX; reg <= EDX; reg++) {
		uint32_t have = reg_of(here, reg), need = reg_of(guest, reg);
		uint32_t missing = need & ~have & ~rule->ignore[reg];

		if (rule->kind[reg] == BITS && missing)
			return fail(
				err, IMG_E_UNSUPPORTED,
				"this host's processor or KVM lacks CPUID %x.%x:%s bit %d, which the guest has seen",
				guest->function, guest->index, reg_name[reg], __builtin_ctz(missing));
		if (rule->kind[reg] == EQUAL && have != need)
			return fail(err, IMG_E_UNSUPPORTED,
				    "CPUID %x.%x:%s is 0x%x on this host; the guest has seen 0x%x", guest->function,
				    guest->index, reg_name[reg], have, need);
	}
	return 0;
}

/* Page tables of the guest may use as many bits as it was told. */
static int check_address_bits(const struct cpuid_table *host, const struct cpuid_table *guest, struct img_error *err)
{
	const struct kvm_cpuid_entry2 *here = cpuid_find(host, 0x80000008, 0);
	const struct kvm_cpuid_entry2 *there = cpuid_find(guest, 0x80000008, 0);
	uint32_t have = here ? here->eax : 36u | 32u << 8, need = there ? there->eax : 0;

	if ((need & 0xff) > (have & 0xff) || (need >> 8 & 0xff) > (have >> 8 & 0xff))
		return fail(err, IMG_E_UNSUPPORTED,
			    "this host's addresses have %u bits (%u linear); the guest has seen %u and %u", have & 0xff,
			    have >> 8 & 0xff, need & 0xff, need >> 8 & 0xff);
	return 0;
}

int cpuid_check(const struct cpuid_table *host, const struct cpuid_table *guest, struct img_error *err)
{
	int rc = 0;

	for (uint32_t i = 0; !rc && i < guest->nent; i++)
		rc = check_entry(host, &guest->entry[i], err);
	return rc ? rc : check_address_bits(host, guest, err);
}
