/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A libbufshare that gives an example one event, and then what the environment says: READ and
 * RETURN are the results of bufshare_frame_read() and bufshare_frame_return(). With REFUSED, the
 * errno of that, a consumer has such an event before
 */

#include <errno.h>
#include <stdlib.h>

#include <libbufshare.h>

static const char *message = "";
static int events, refused;

static int result(const char *name)
{
	const char *value = getenv(name);

	if (!value)
		return 0;
	message = name;
	return -atoi(value);
}

const char *bufshare_last_message(void)
{
	return message;
}

int bufshare_producer_open(const struct bufshare_producer_options *options,
			   struct bufshare_producer **producer)
{
	(void)options, (void)producer;
	return 0;
}

int bufshare_producer_get_fd(const struct bufshare_producer *producer)
{
	(void)producer;
	return -1;
}

int bufshare_producer_next_event(struct bufshare_producer *producer,
				 struct bufshare_producer_event *event, int timeout_ms)
{
	(void)producer, (void)timeout_ms;
	event->kind = BUFSHARE_PRODUCER_ENDED;
	return !events++;
}

int bufshare_producer_acquire(struct bufshare_producer *producer, int number,
			      struct bufshare_slot **slot)
{
	(void)producer, (void)number, (void)slot;
	message = "acquired of a stream that is no more";
	return -EIO;
}

int bufshare_slot_map(struct bufshare_slot *slot, uint32_t index, void **address, size_t *length)
{
	(void)slot, (void)index, (void)address, (void)length;
	abort();
}

void bufshare_slot_release(struct bufshare_slot *slot)
{
	(void)slot;
}

int bufshare_producer_push(struct bufshare_producer *producer, struct bufshare_slot *slot,
			   const struct bufshare_frame_record *record, size_t record_size,
			   uint64_t *frame)
{
	(void)producer, (void)slot, (void)record, (void)record_size, (void)frame;
	abort();
}

int bufshare_producer_end(struct bufshare_producer *producer)
{
	(void)producer;
	message = "ended a stream that is no more";
	return -EIO;
}

int bufshare_producer_out(const struct bufshare_producer *producer)
{
	(void)producer;
	return 0;
}

void bufshare_producer_close(struct bufshare_producer *producer)
{
	(void)producer;
}

int bufshare_consumer_open(const struct bufshare_consumer_options *options,
			   struct bufshare_consumer **consumer)
{
	(void)options, (void)consumer;
	return 0;
}

int bufshare_consumer_get_fd(const struct bufshare_consumer *consumer)
{
	(void)consumer;
	return -1;
}

int bufshare_consumer_next_event(struct bufshare_consumer *consumer,
				 struct bufshare_consumer_event *event, int timeout_ms)
{
	(void)consumer, (void)timeout_ms;
	if (!events && !refused && (event->error = result("REFUSED"))) {
		refused = 1;
		event->kind = BUFSHARE_CONSUMER_REFUSED;
		return 1;
	}
	event->kind = BUFSHARE_CONSUMER_FRAME;
	return !events++;
}

int bufshare_frame_read(struct bufshare_frame *frame, uint32_t index, uint64_t offset,
			void *bytes, size_t length)
{
	(void)frame, (void)index, (void)offset, (void)bytes, (void)length;
	return result("READ");
}

void bufshare_frame_get_record(const struct bufshare_frame *frame,
			       struct bufshare_frame_record *record, size_t record_size)
{
	(void)frame, (void)record_size;
	record->sequence = 1;
}

int bufshare_frame_return(struct bufshare_frame *frame)
{
	(void)frame;
	return result("RETURN");
}

void bufshare_consumer_close(struct bufshare_consumer *consumer)
{
	(void)consumer;
}
