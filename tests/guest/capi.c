/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What of libbufshare the examples do not use, in one VM of two
 *
 * capi export PEER: exports two buffers, one for PEER alone, and pushes a frame in a foreign
 * dma-buf as the stream "capi", which names an image; until the end of the input.
 * capi import PEER ID: imports that buffer, and takes that frame.
 * capi misuse: whatever a program does wrong.
 * Prints "done", or which check failed.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <libbufshare.h>

#define CHECK(condition)                                                                   \
	do {                                                                               \
		if (!(condition)) {                                                        \
			printf("line %d: %s (%s)\n", __LINE__, #condition,                 \
			       bufshare_last_message());                                   \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

#define SIZE 65536

static const struct bufshare_image image = {
	.fourcc = 0x34325258, .num_planes = 1, .width = 64, .height = 64,
	.planes = { { .stride = 256, .rows = 64 } },
};

static int count(void *data, const struct bufshare_buffer_info *buffer)
{
	const struct bufshare_id *id = data;

	CHECK(buffer->size == sizeof(*buffer));
	return memcmp(id, &buffer->id, sizeof(*id)) ? 0 : buffer->flags == BUFSHARE_BUFFER_INFO_OWNED ? 1 : 2;
}

static void print_id(const struct bufshare_id *id)
{
	for (int i = 0; i < BUFSHARE_ID_LEN; i++)
		printf("%02x", id->b[i]);
	printf("\n");
}

static struct bufshare *open_device(void)
{
	struct bufshare_device_info info = { .size = sizeof(info) };
	struct bufshare *device;

	CHECK(bufshare_open(NULL, &device) == 0);
	CHECK(bufshare_get_info(device, &info) == 0);
	CHECK(info.size == sizeof(info) && info.caps & BUFSHARE_CAP_MAP && info.peer_id);
	CHECK(info.max_buffer_size >= SIZE && info.map_align >= 4096 && info.name[0]);
	return device;
}

static uint64_t find(struct bufshare *device, const char *name)
{
	struct bufshare_peer_info peer = { .size = sizeof(peer) };

	CHECK(bufshare_find_peer(device, name, &peer) == 0);
	CHECK(peer.up == 1 && !strcmp(peer.name, name) && peer.export_rights);
	return peer.id;
}

static void do_export(const char *name)
{
	struct bufshare *device = open_device();
	struct bufshare_access access = {
		.peer = find(device, name), .rights = BUFSHARE_READ | BUFSHARE_WRITE,
	};
	struct bufshare_export_options options = {
		.size = sizeof(options), .num_access = 1, .access = &access, .name = "for one",
		.image = &image, .blob = "blob", .blob_len = 4,
	};
	struct bufshare_producer_options stream = {
		.size = sizeof(stream), .name = "capi", .image = &image, .access = &access,
		.num_access = 1, .epoch = 77, .blob = "stream", .blob_len = 6,
	};
	struct bufshare_frame_record record = { .sequence = 5, .flags = BUFSHARE_FRAME_LAST };
	struct bufshare_producer_event event = { .size = sizeof(event) };
	struct bufshare_producer *producer;
	struct bufshare_slot *slot, *none;
	struct bufshare_id id;
	int first = bufshare_alloc(device, SIZE), second = bufshare_alloc(device, SIZE), fd;
	int all, one, places[2];
	uint64_t frame;
	char *bytes, last;
	size_t length;

	CHECK(first >= 0 && second >= 0 && fcntl(first, F_GETFD) & FD_CLOEXEC);
	all = bufshare_export(device, first, NULL, NULL);
	one = bufshare_export(device, first, &options, &id);
	CHECK(all >= 0 && one >= 0 && bufshare_list(device, count, &id) == 1);
	bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, first, 0);
	CHECK(bytes != MAP_FAILED);
	strcpy(bytes, "exported");

	CHECK(bufshare_producer_open(&stream, &producer) == 0);
	CHECK(bufshare_producer_acquire(producer, -1, &slot) == 0);
	CHECK(bufshare_producer_add(producer, &second, 1) == 0);
	CHECK(bufshare_producer_acquire(producer, 1, &slot) == 0);
	fd = bufshare_alloc(device, SIZE);
	CHECK(fd >= 0 && bufshare_producer_add(producer, &fd, 1) == 1);
	CHECK(bufshare_producer_add(producer, &fd, 1) == -EALREADY);
	/* In another place, where its metadata would have no image. */
	places[0] = bufshare_alloc(device, SIZE);
	places[1] = fd;
	CHECK(places[0] >= 0 && bufshare_producer_add(producer, places, 2) == -EALREADY);
	close(places[0]);
	CHECK(bufshare_producer_remove(producer, 1) == 1);
	CHECK(bufshare_producer_remove(producer, 1) == 0);
	close(fd);
	CHECK(bufshare_producer_acquire(producer, 0, &slot) == 1);
	CHECK(bufshare_producer_acquire(producer, -1, &none) == 0);
	bufshare_slot_release(slot);
	CHECK(bufshare_producer_acquire(producer, -1, &slot) == 1);
	CHECK(bufshare_slot_number(slot) == 0 && bufshare_slot_num_buffers(slot) == 1);
	fd = bufshare_slot_dup_fd(slot, 0);
	CHECK(fd >= 0 && fd != second && bufshare_slot_dup_fd(slot, 1) == -EINVAL);
	close(fd);
	CHECK(bufshare_slot_map(slot, 0, (void **)&bytes, &length) == 0 && length == SIZE);
	CHECK(bufshare_slot_map(slot, 0, (void **)&bytes, NULL) == 0);
	strcpy(bytes, "pushed");
	print_id(&id);
	fflush(stdout);
	/* The consumer has joined, and has the buffer, when the test says so. */
	CHECK(read(STDIN_FILENO, &last, 1) == 1 && bufshare_producer_consumers(producer) == 1);
	CHECK(bufshare_producer_push(producer, slot, &record, sizeof(record), &frame) == 0);
	CHECK(frame && bufshare_producer_out(producer) == 1);
	do
		CHECK(bufshare_producer_next_event(producer, &event, -1) == 1);
	while (event.kind != BUFSHARE_PRODUCER_RETURNED);
	CHECK(event.frame == frame && event.slot == 0 && bufshare_producer_out(producer) == 0);
	CHECK(bufshare_producer_end(producer) == 0);
	CHECK(read(STDIN_FILENO, &last, 1) == 0);
	bufshare_producer_close(producer);
	close(all);
	close(one);
	close(first);
	close(second);
	bufshare_close(device);
}

static void do_import(const char *name, const char *text)
{
	struct bufshare_import_info info = { .size = sizeof(info) };
	struct bufshare_event_info news = { .size = sizeof(news) };
	struct bufshare_consumer_options options = {
		.size = sizeof(options), .peer = name, .name = "capi", .max_windows = 1,
	};
	struct bufshare_consumer_event event = { .size = sizeof(event) };
	struct bufshare *device = open_device();
	struct bufshare_frame_record record;
	struct bufshare_meta_info meta = { .size = sizeof(meta) };
	struct bufshare_image seen;
	struct bufshare_consumer *consumer;
	struct bufshare_id id, stream, part;
	unsigned int byte;
	size_t length;
	char *bytes, read[7], blob[8];
	int fd, joined = 0, ended = 0, over = 0;

	for (int i = 0; i < BUFSHARE_ID_LEN; i++) {
		CHECK(sscanf(text + 2 * i, "%2x", &byte) == 1);
		id.b[i] = byte;
	}
	CHECK(bufshare_list(device, count, &id) == 2);
	CHECK(bufshare_get_meta(device, &id, &meta, blob, sizeof(blob)) == 0);
	CHECK(meta.size == sizeof(meta) && !strcmp(meta.name, "for one"));
	CHECK(meta.flags == BUFSHARE_META_INFO_IMAGE && !memcmp(&meta.image, &image, sizeof(image)));
	CHECK(meta.blob_len == 4 && !memcmp(blob, "blob", 5));
	fd = bufshare_import(device, &id, BUFSHARE_READ | BUFSHARE_WRITE, &info);
	CHECK(fd >= 0 && info.bytes == SIZE && info.owner == find(device, name));
	bytes = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(bytes != MAP_FAILED && !strcmp(bytes, "exported"));

	CHECK(bufshare_consumer_open(&options, &consumer) == 0);
	while (!event.frame) {
		CHECK(bufshare_consumer_next_event(consumer, &event, 0) >= 0);
		if (event.kind == BUFSHARE_CONSUMER_JOINED && !joined++) {
			CHECK(event.epoch == 77 && !event.ended);
			stream = event.id;
			CHECK(bufshare_get_meta(device, &stream, &meta, blob, 3) == 0);
			CHECK(meta.flags == BUFSHARE_META_INFO_IMAGE && meta.epoch == 77);
			CHECK(!strcmp(meta.name, "capi"));
			CHECK(meta.blob_len == 6 && !memcmp(blob, "strb", 4));
			while (bufshare_consumer_next_event(consumer, &event, 0) > 0)
				;
			puts("joined");
			fflush(stdout);
		}
		if (!event.frame) {
			struct pollfd poll_fd = { bufshare_consumer_get_fd(consumer), POLLIN, 0 };

			CHECK(poll(&poll_fd, 1, -1) == 1);
		}
	}
	CHECK(joined && event.kind == BUFSHARE_CONSUMER_FRAME);
	bufshare_frame_get_record(event.frame, &record, sizeof(record));
	CHECK(record.sequence == 5 && record.flags == BUFSHARE_FRAME_LAST && record.epoch == 77);
	CHECK(bufshare_frame_number(event.frame) && bufshare_frame_arrival(event.frame));
	CHECK(bufshare_frame_get_image(event.frame, &seen) == 1);
	CHECK(!memcmp(&seen, &image, sizeof(seen)));
	CHECK(bufshare_frame_num_buffers(event.frame) == 1);
	CHECK(bufshare_frame_get_buffer_id(event.frame, 0, &part) == 0);
	CHECK(bufshare_list(device, count, &part) == 2 && memcmp(&part, &stream, sizeof(part)));
	CHECK(bufshare_frame_get_buffer_id(event.frame, 1, &part) == -EINVAL);
	CHECK(bufshare_frame_size(event.frame, 0) == SIZE && !bufshare_frame_size(event.frame, 1));
	CHECK(bufshare_frame_read(event.frame, 0, 0, read, sizeof(read)) == 0);
	CHECK(!strcmp(read, "pushed"));
	CHECK(bufshare_frame_read(event.frame, 0, SIZE - 6, read, sizeof(read)) == -ERANGE);
	CHECK(bufshare_frame_read(event.frame, 1, 0, read, sizeof(read)) == -EINVAL);
	CHECK(bufshare_frame_map(event.frame, 0, (void **)&bytes, &length) == 0);
	CHECK(length == SIZE && !strcmp(bytes, "pushed"));
	close(bufshare_frame_dup_fd(event.frame, 0));
	CHECK(bufshare_frame_return(event.frame) == 0);
	while (!over) {
		CHECK(bufshare_consumer_next_event(consumer, &event, -1) == 1);
		over += event.kind == BUFSHARE_CONSUMER_OVER;
		if (event.kind != BUFSHARE_CONSUMER_RECORD)
			continue;
		CHECK(event.ended && event.epoch == 77 && !ended++);
		/* Else the end of the stream may overtake it. */
		puts("ended");
		fflush(stdout);
	}
	do
		CHECK(bufshare_next_event(device, &news, -1) == 1);
	while (news.kind != BUFSHARE_EVT_REVOKED || memcmp(&news.id, &id, sizeof(id)));
	bufshare_consumer_close(consumer);
	close(fd);
	bufshare_close(device);
}

/* Of which a newer program knows more. */
struct newer {
	struct bufshare_producer_options options;
	uint64_t more;
};

static void do_misuse(void)
{
	struct bufshare_image large = { .fourcc = 1, .num_planes = 1, .width = 1, .height = 1 };
	struct bufshare_export_options options = { .size = sizeof(options), .image = &large };
	struct bufshare_meta_info meta = { .size = sizeof(meta) };
	struct newer newer = { .options = { .size = sizeof(newer), .name = "newer" } };
	struct bufshare *device = open_device();
	struct bufshare_producer *producer = NULL;
	struct bufshare_slot *slot;
	struct bufshare_id id = { .b = { 1 } };
	unsigned char record[BUFSHARE_MAX_FRAME_RECORD + 8] = { 0 };
	int fd = bufshare_alloc(device, 4096), null = open("/dev/null", O_RDWR);
	uint64_t size = 4096;

	/* Its size is not what is used of it. */
	large.planes[0].stride = 4097;
	large.planes[0].rows = 1;
	CHECK(bufshare_export(device, fd, &options, NULL) == -EINVAL);
	CHECK(bufshare_last_status() == BUFSHARE_S_BAD_META);
	CHECK(strstr(bufshare_last_message(), "planes are within the buffers"));
	large.num_planes = 5;
	CHECK(bufshare_export(device, fd, &options, NULL) == -EINVAL && !bufshare_last_status());
	CHECK(bufshare_export(device, null, NULL, NULL) == -EINVAL);
	CHECK(bufshare_export(device, -1, NULL, NULL) == -EBADF);
	CHECK(bufshare_alloc(device, 0) == -EINVAL);
	CHECK(bufshare_import(device, &id, BUFSHARE_READ | BUFSHARE_WRITE, NULL) == -ENOENT);
	CHECK(bufshare_last_status() == BUFSHARE_S_NOT_FOUND);
	CHECK(bufshare_import(device, &id, 4, NULL) == -EINVAL);
	CHECK(bufshare_get_meta(device, &id, &meta, NULL, 0) == -ENOENT);
	CHECK(bufshare_get_fd(NULL) == -EINVAL);

	newer.more = 1;
	CHECK(bufshare_producer_open(&newer.options, &producer) == -E2BIG);
	CHECK(strstr(bufshare_last_message(), "update libbufshare") && !producer);
	newer.more = 0;
	newer.options.sizes = &size;
	newer.options.num_sizes = 1;
	newer.options.slots = 1;
	CHECK(bufshare_producer_open(&newer.options, &producer) == 0);

	/* Of a newer version, which the host hands on; too long; and one that cannot be. */
	record[376] = 1;
	CHECK(bufshare_producer_acquire(producer, -1, &slot) == 1);
	CHECK(bufshare_producer_push(producer, slot, (void *)record, 384, NULL) == 0);
	while (bufshare_producer_acquire(producer, -1, &slot) == 0) {
		struct bufshare_producer_event event = { .size = sizeof(event) };

		CHECK(bufshare_producer_next_event(producer, &event, -1) == 1);
	}
	CHECK(bufshare_producer_push(producer, slot, (void *)record, 776, NULL) == -EINVAL);
	/* The slot was not lost. */
	CHECK(bufshare_producer_acquire(producer, -1, &slot) == 1);
	record[32] = 99;
	CHECK(bufshare_producer_push(producer, slot, (void *)record, 376, NULL) == -EINVAL);
	CHECK(bufshare_last_status() == BUFSHARE_S_BAD_META);
	CHECK(bufshare_producer_acquire(producer, -1, &slot) == 1);
	bufshare_producer_close(producer);
	/* An object outlives that of which it is. */
	bufshare_slot_release(slot);
	close(fd);
	close(null);
	bufshare_close(device);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "export"))
		do_export(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "import"))
		do_import(argv[2], argv[3]);
	else if (argc == 2 && !strcmp(argv[1], "misuse"))
		do_misuse();
	else
		return 2;
	puts("done");
	return 0;
}
