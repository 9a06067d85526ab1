/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Pushes 25 frames a second as the stream "frames", until the end of the input */

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <libbufshare.h>

/* If all slots are with consumers, they miss this frame, and see that by its number. */
static int push(struct bufshare_producer *producer, uint64_t sequence)
{
	struct bufshare_frame_record record = { .sequence = sequence };
	struct bufshare_slot *slot;
	void *pixels;
	int ret = bufshare_producer_acquire(producer, -1, &slot);

	if (ret <= 0)
		return ret;
	ret = bufshare_slot_map(slot, 0, &pixels, NULL);
	if (ret < 0) {
		bufshare_slot_release(slot);
		return ret;
	}
	memset(pixels, sequence & 0xff, 1280 * 240);
	return bufshare_producer_push(producer, slot, &record, sizeof(record), NULL);
}

int main(void)
{
	struct bufshare_image image = {
		.fourcc = 0x34325258, .num_planes = 1, .width = 320, .height = 240,
		.planes = { { .stride = 1280, .rows = 240 } },
	};
	/* A consumer that keeps more than max_held leaves a slot for the others. */
	struct bufshare_producer_options options = {
		.size = sizeof(options), .name = "frames", .image = &image, .slots = 4, .max_held = 3,
	};
	struct itimerspec period = { { 0, 40000000 }, { 0, 40000000 } };
	struct bufshare_producer_event event = { .size = sizeof(event) };
	struct bufshare_producer *producer = NULL;
	uint64_t sequence = 0, due;
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	int ret = bufshare_producer_open(&options, &producer), ended = 0;
	struct pollfd fds[] = { { ret ? -1 : bufshare_producer_get_fd(producer), POLLIN, 0 },
				{ timer, POLLIN, 0 }, { STDIN_FILENO, POLLIN, 0 } };

	setvbuf(stdout, NULL, _IOLBF, 0);
	timerfd_settime(timer, 0, &period, NULL);
	while (ret == 0 && !ended && !fds[2].revents) {
		poll(fds, 3, -1);
		while ((ret = bufshare_producer_next_event(producer, &event, 0)) > 0)
			if (event.kind == BUFSHARE_PRODUCER_LEFT)
				printf("peer %llu left\n", (unsigned long long)event.peer);
			else if (event.kind == BUFSHARE_PRODUCER_ENDED)
				ended = 1;
		if (ret == 0 && !ended && fds[1].revents && read(timer, &due, sizeof(due)) > 0)
			ret = push(producer, sequence++);
	}
	if (ret == 0 && !ended)
		ret = bufshare_producer_end(producer);
	if (ret < 0)
		fprintf(stderr, "%s\n", bufshare_last_message());
	else if (ended)
		fprintf(stderr, "this VM was suspended\n");
	/* The last frames are seen before the buffers go, unless somebody keeps them. */
	while (ret == 0 && !ended && bufshare_producer_out(producer) > 0)
		if (bufshare_producer_next_event(producer, &event, 2000) <= 0)
			break;
	bufshare_producer_close(producer);
	close(timer);
	return ret < 0 || ended;
}
