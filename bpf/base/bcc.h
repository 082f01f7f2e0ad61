/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What differs when the programs are compiled by BCC on the host: nothing is relocated at load.
 * The types are laid out for the running kernel before they are compiled; a member that it does
 * not have stands behind ABSENT_MEMBER. agent/tocsin/kernel/bcc/ reads the names in capitals here.
 */
#ifndef TOCSIN_BASE_BCC_H
#define TOCSIN_BASE_BCC_H

#define ABSENT_MEMBER 0x2B5C0000

#undef bpf_core_field_exists
#undef bpf_core_field_offset
#undef bpf_core_type_size
#undef bpf_core_type_exists
#undef bpf_core_enum_value
#undef bpf_core_enum_value_exists
#undef BPF_CORE_READ_BITFIELD_PROBED
#undef SEC
#undef __noinline

#define __builtin_preserve_access_index(access) (access)
#define bpf_core_field_exists(type, member)     (__builtin_offsetof(type, member) < ABSENT_MEMBER)
#define bpf_core_field_offset(type, member)     __builtin_offsetof(type, member)
#define bpf_core_type_size(type)                sizeof(type)
#define bpf_core_type_exists(type)              TOCSIN_TYPE_EXISTS(type)
#define bpf_core_enum_value(type, value)        TOCSIN_ENUM_VALUE_##value
#define bpf_core_enum_value_exists(type, value) TOCSIN_ENUM_EXISTS_##value
#define BPF_CORE_READ_BITFIELD_PROBED(from, bits) \
	(BPF_CORE_READ(from, bits) >> TOCSIN_SHIFT_##bits & TOCSIN_MASK_##bits)

#define SEC(name)  TOCSIN_SECTION(name)
#define __noinline TOCSIN_GLOBAL

#endif
