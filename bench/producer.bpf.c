/* Writes records that were captured before into the agent's own ring buffer, as fast as it is told.
 *
 * Run through BPF_PROG_TEST_RUN; the map `events` is replaced by the agent's before loading.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* More than any template: the verifier wants a bound that it can see. */
#define RECORD_MAX_BYTES  4096
#define TEMPLATES_MAX     4096
#define RECORDS_A_RUN_MAX 4096

struct template
{
	__u32 size_bytes;
	__u8 record[RECORD_MAX_BYTES];
};

/* In and out: what to write, and how much was written. */
struct order {
	__u32 first;
	__u32 count;
	__u32 templates;
	__u32 written;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TEMPLATES_MAX);
	__type(key, __u32);
	__type(value, struct template);
} templates SEC(".maps");

static long write_record(__u32 index, struct order *order)
{
	__u32 number;
	__u64 size;
	struct template *template;

	if (!order->templates)
		return 1;
	number = (order->first + index) % order->templates;
	template = bpf_map_lookup_elem(&templates, &number);
	if (!template)
		return 1;
	size = template->size_bytes;
	if (size == 0 || size > RECORD_MAX_BYTES)
		return 1;
	if (bpf_ringbuf_output(&events, template->record, size, BPF_RB_NO_WAKEUP))
		return 1;
	order->written++;
	return 0;
}

SEC("syscall")
int produce(struct order *order)
{
	struct order local = *order;

	local.written = 0;
	if (local.count <= RECORDS_A_RUN_MAX)
		bpf_loop(local.count, write_record, &local, 0);
	order->written = local.written;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
