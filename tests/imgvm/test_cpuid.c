/* SPDX-License-Identifier: MIT */
/* What a guest is told of its processor, and on which host it may go on. Tables made by hand: no KVM is needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "vm_int.h"

#define BIT(n) (UINT32_C(1) << (n))

static void put(struct cpuid_table *t, uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
		uint32_t edx)
{
	t->entry[t->nent++] = (struct kvm_cpuid_entry2){
		.function = function, .index = index, .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx
	};
}

/* A processor of Intel's with everything that is hidden. */
static void intel(struct cpuid_table *t)
{
	memset(t, 0, sizeof(*t));
	put(t, 0x0, 0, 0x24, 0x756e6547, 0x6c65746e, 0x49656e69);
	put(t, 0x1, 0, 0xa0671, 0x00020800, 0xffffffff, 0x0f8bfbff);
	put(t, 0x2, 0, 0x00feff01, 0xf0, 0, 0);
	put(t, 0x3, 0, 0, 0, 0, 0);
	put(t, 0x4, 0, 0x04000121, 0x02c0003f, 0x3f, 0);
	put(t, 0x4, 3, 0x04004163, 0x03c0003f, 0x7ffff, 4);
	put(t, 0x4, 4, 0, 0, 0, 0);
	put(t, 0x6, 0, 4, 0, 0, 0);
	put(t, 0x7, 0, 2, 0xffffffff, 0xffffffff, 0xffffffff);
	put(t, 0x7, 1, 0xffffffff, 0, 0, 0xffffffff);
	put(t, 0xa, 0, 0x07300404, 0, 0, 0x603);
	put(t, 0xd, 0, 0x602ff, 0xa88, 0x2b00, 0);
	put(t, 0xd, 1, 0x1f, 0, 0x1800, 0);
	put(t, 0xd, 2, 0x100, 0x240, 0, 0);
	put(t, 0xd, 3, 0x40, 0x3c0, 0, 0);
	put(t, 0xd, 5, 0x40, 0x440, 0, 0);
	put(t, 0xd, 9, 0x8, 0xa80, 0, 0);
	put(t, 0xd, 17, 0x40, 0xac0, 2, 0);
	put(t, 0xd, 18, 0x2000, 0xb00, 6, 0);
	put(t, 0x1d, 0, 1, 0, 0, 0);
	put(t, 0x1f, 0, 1, 2, 0x100, 0);
	put(t, 0x40000000, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d);
	put(t, 0x40000001, 0, 0x01007efb, 0, 0, 0);
	put(t, 0x80000000, 0, 0x80000008, 0, 0, 0);
	put(t, 0x80000001, 0, 0, 0, 0x121, 0x2c100800);
	put(t, 0x80000008, 0, 0x3934, 0, 0, 0);
}

static void amd(struct cpuid_table *t)
{
	memset(t, 0, sizeof(*t));
	put(t, 0x0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65);
	put(t, 0x1, 0, 0xa20f10, 0x00010800, 0xfff83203, 0x178bfbff);
	put(t, 0xb, 0, 1, 2, 0x100, 0);
	put(t, 0x80000001, 0, 0, 0, BIT(22) | BIT(2) | BIT(0), 0x2fd3fbff);
	put(t, 0x80000008, 0, 0x3030, 0x1000, 0x7007, 0);
	put(t, 0x8000000a, 0, 1, 8, 0, 0x7f);
	put(t, 0x8000001d, 0, 0x4121, 0x1c0003f, 0x3f, 0);
	put(t, 0x8000001d, 3, 0x1c163, 0x3c0003f, 0x7fff, 1);
	put(t, 0x8000001e, 0, 7, 0x103, 0x300, 0);
}

static const struct kvm_cpuid_entry2 *get(const struct cpuid_table *t, uint32_t function, uint32_t index)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(t, function, index);

	assert_non_null(e);
	return e;
}

static void test_what_is_hidden(void **unused)
{
	struct cpuid_table t;
	const struct kvm_cpuid_entry2 *e;

	(void)unused;
	intel(&t);
	cpuid_hide(&t);
	e = get(&t, 1, 0);
	assert_int_equal(e->ecx & (BIT(3) | BIT(5) | BIT(15)), 0);
	assert_int_equal(e->ecx | BIT(3) | BIT(5) | BIT(15), UINT32_MAX);
	e = get(&t, 7, 0);
	assert_int_equal(e->ebx, ~(BIT(2) | BIT(14) | BIT(25)));
	assert_int_equal(e->ecx, ~(BIT(7) | BIT(30)));
	assert_int_equal(e->edx & (BIT(22) | BIT(24) | BIT(25) | BIT(20) | BIT(19)), 0);
	assert_int_equal(get(&t, 7, 1)->eax & (BIT(21) | BIT(17)), 0);
	assert_null(cpuid_find(&t, 0xa, 0));
	assert_null(cpuid_find(&t, 0x1d, 0));
	assert_null(cpuid_find(&t, 0x1f, 0));
	/* extended state: no MPX, no tiles, nothing of the supervisor, and its size is that of what is left */
	e = get(&t, 0xd, 0);
	assert_int_equal(e->eax, 0x2e7);
	assert_int_equal(e->ecx, 0xa88);
	e = get(&t, 0xd, 1);
	assert_int_equal(e->eax, 0xf);
	assert_int_equal(e->ecx, 0);
	assert_null(cpuid_find(&t, 0xd, 3));
	assert_null(cpuid_find(&t, 0xd, 18));
	assert_non_null(cpuid_find(&t, 0xd, 9));
	/* zeros need no entry */
	assert_null(cpuid_find(&t, 3, 0));
	assert_null(cpuid_find(&t, 4, 4));

	amd(&t);
	cpuid_hide(&t);
	assert_int_equal(get(&t, 0x80000001, 0)->ecx, BIT(22) | BIT(0));
	assert_null(cpuid_find(&t, 0x8000000a, 0));
}

static void test_topology(void **unused)
{
	struct cpuid_table t;
	const struct kvm_cpuid_entry2 *e;

	(void)unused;
	for (unsigned nr = 1; nr <= VM_MAX_VCPUS; nr++) {
		unsigned bits = nr == 1 ? 0 : nr == 2 ? 1 : nr <= 4 ? 2 : 3;

		for (unsigned i = 0; i < nr; i++) {
			intel(&t);
			cpuid_hide(&t);
			cpuid_number(&t, i, nr);
			e = get(&t, 1, 0);
			assert_int_equal(e->ebx >> 24, i);
			assert_int_equal(e->ebx >> 16 & 0xff, 1u << bits);
			assert_int_equal(e->ebx & 0xffff, 0x0800);
			assert_int_equal(e->edx >> 28 & 1, nr > 1);
			e = get(&t, 4, 0);
			assert_int_equal(e->eax >> 26, (1u << bits) - 1);
			assert_int_equal(e->eax >> 14 & 0xfff, 0);
			assert_int_equal(e->eax & 0x3fff, 0x121);
			assert_int_equal(get(&t, 4, 3)->eax >> 14 & 0xfff, (1u << bits) - 1);
			e = get(&t, 0xb, 0);
			assert_int_equal(e->eax, 0);
			assert_int_equal(e->ebx, 1);
			assert_int_equal(e->ecx, 0x100);
			assert_int_equal(e->edx, i);
			assert_int_equal(e->flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
			e = get(&t, 0xb, 1);
			assert_int_equal(e->eax, bits);
			assert_int_equal(e->ebx, nr);
			assert_int_equal(e->ecx, 0x201);
			assert_int_equal(get(&t, 0xb, 2)->ecx, 2);

			amd(&t);
			cpuid_hide(&t);
			cpuid_number(&t, i, nr);
			assert_int_equal(get(&t, 0x80000001, 0)->ecx >> 1 & 1, nr > 1);
			assert_int_equal(get(&t, 0x80000008, 0)->ecx, bits << 12 | (nr - 1));
			assert_int_equal(get(&t, 0x8000001d, 0)->eax, 0x121);
			assert_int_equal(get(&t, 0x8000001d, 3)->eax, 0x163 | ((1u << bits) - 1) << 14);
			e = get(&t, 0x8000001e, 0);
			assert_int_equal(e->eax, i);
			assert_int_equal(e->ebx, i);
			assert_int_equal(e->ecx, 0);
		}
	}
}

/* KVM's answer depends on the processor that was asked; the guest's must not. */
static void test_same_whoever_was_asked(void **unused)
{
	struct cpuid_table a, b;

	(void)unused;
	intel(&a);
	b = a;
	put(&a, 0xb, 0, 0, 0, 0, 0);
	/* the second one: its number here and there */
	for (uint32_t i = 0; i < b.nent; i++)
		if (b.entry[i].function == 1)
			b.entry[i].ebx |= UINT32_C(1) << 24;
	put(&b, 0xb, 0, 0, 0, 0, 1);
	b.entry[b.nent] = b.entry[3];
	b.entry[3] = b.entry[b.nent - 1];
	b.entry[b.nent - 1] = b.entry[b.nent];
	assert_false(cpuid_same(&a, &b));
	cpuid_hide(&a);
	cpuid_hide(&b);
	cpuid_number(&a, 0, 2);
	cpuid_number(&b, 0, 2);
	assert_true(cpuid_same(&a, &b));
	assert_true(cpuid_same(&b, &a));
	b.nent--;
	assert_false(cpuid_same(&a, &b));
	assert_false(cpuid_same(&b, &a));
}

static struct kvm_cpuid_entry2 *change(struct cpuid_table *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->nent; i++)
		if (t->entry[i].function == function && t->entry[i].index == index)
			return &t->entry[i];
	fail_msg("no leaf %x.%x", function, index);
	return NULL;
}

static void test_same_host(void **unused)
{
	struct cpuid_table host, guest;
	struct img_error err = { 0 };

	(void)unused;
	intel(&host);
	cpuid_hide(&host);
	guest = host;
	cpuid_number(&guest, 3, 4);
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
	amd(&host);
	cpuid_hide(&host);
	guest = host;
	cpuid_number(&guest, 3, 4);
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
}

static void refused(const struct cpuid_table *host, const struct cpuid_table *guest, const char *word)
{
	struct img_error err = { 0 };

	assert_int_equal(cpuid_check(host, guest, &err), IMG_E_UNSUPPORTED);
	if (!strstr(err.msg, word))
		fail_msg("'%s' is not in: %s", word, err.msg);
}

static void test_feature_bits(void **unused)
{
	static const struct {
		uint32_t function, index;
		uint32_t ecx;
		const char *text;
	} leaf[] = { { 1, 0, BIT(12), "1.0:ECX bit 12" }, { 7, 0, BIT(8), "7.0:ECX bit 8" } };
	struct cpuid_table host, guest;
	struct img_error err = { 0 };

	(void)unused;
	intel(&host);
	cpuid_hide(&host);
	guest = host;
	cpuid_number(&guest, 0, 1);
	for (unsigned i = 0; i < 2; i++) {
		change(&host, leaf[i].function, leaf[i].index)->ecx &= ~leaf[i].ecx;
		refused(&host, &guest, leaf[i].text);
		/* the other way: what the guest never saw may be there */
		assert_int_equal(cpuid_check(&guest, &host, &err), 0);
		change(&host, leaf[i].function, leaf[i].index)->ecx |= leaf[i].ecx;
	}
	change(&host, 7, 0)->ebx &= ~BIT(16);
	refused(&host, &guest, "7.0:EBX bit 16");
	change(&host, 7, 0)->ebx |= BIT(16);
	change(&host, 0x40000001, 0)->eax &= ~BIT(3);
	refused(&host, &guest, "40000001.0:EAX bit 3");
	change(&host, 0x40000001, 0)->eax |= BIT(3);
	/* what comes and goes with CR4 is no feature of its own */
	change(&host, 1, 0)->ecx &= ~BIT(27);
	change(&host, 7, 0)->ecx &= ~BIT(4);
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
	/* a leaf that is missing here */
	guest = host;
	put(&guest, 0x14, 0, 1, 0xf, 0, 0);
	refused(&host, &guest, "14.0:EAX");
	put(&host, 0x14, 0, 1, 0xf, 0, 0);
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
	/* every feature bit that the guest has, one by one */
	guest = host;
	for (unsigned bit = 0; bit < 32; bit++) {
		uint32_t *edx = &change(&host, 1, 0)->edx;

		if (!(*edx & BIT(bit)) || bit == 28)
			continue;
		*edx &= ~BIT(bit);
		refused(&host, &guest, "1.0:EDX");
		*edx |= BIT(bit);
	}
}

static void test_other_hosts(void **unused)
{
	struct cpuid_table host, guest;
	struct img_error err = { 0 };

	(void)unused;
	intel(&guest);
	cpuid_hide(&guest);
	host = guest;
	/* model, caches and number of leaves are the guest's own */
	change(&host, 0, 0)->eax = 0x1f;
	change(&host, 1, 0)->eax = 0x50654;
	change(&host, 2, 0)->eax = 1;
	change(&host, 4, 3)->ecx = 0xfff;
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
	/* the maker is not */
	amd(&host);
	cpuid_hide(&host);
	refused(&host, &guest, "0.0:EBX");
	/* extended state somewhere else */
	host = guest;
	change(&host, 0xd, 9)->ebx = 0x340;
	refused(&host, &guest, "d.9:EBX");
	host = guest;
	change(&host, 0xd, 0)->eax &= ~BIT(7);
	refused(&host, &guest, "d.0:EAX bit 7");
	/* addresses */
	host = guest;
	change(&host, 0x80000008, 0)->eax = 0x392e;
	refused(&host, &guest, "46");
	change(&host, 0x80000008, 0)->eax = 0x3034;
	refused(&host, &guest, "48");
	change(&host, 0x80000008, 0)->eax = 0x3935;
	assert_int_equal(cpuid_check(&host, &guest, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_hidden), cmocka_unit_test(test_topology),
		cmocka_unit_test(test_same_host),      cmocka_unit_test(test_feature_bits),
		cmocka_unit_test(test_other_hosts),    cmocka_unit_test(test_same_whoever_was_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
