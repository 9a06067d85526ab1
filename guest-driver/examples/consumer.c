/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Prints the number and the first bytes of each frame of a peer's stream "frames", until the
 * end of the input; the peer may come and go
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include <libbufshare.h>

static int show(struct bufshare_frame *frame)
{
	struct bufshare_frame_record record;
	unsigned char bytes[4];
	int ret = bufshare_frame_read(frame, 0, 0, bytes, sizeof(bytes));
	int back;

	bufshare_frame_get_record(frame, &record, sizeof(record));
	back = bufshare_frame_return(frame);
	if (ret == 0)
		printf("frame %llu: [%02x, %02x, %02x, %02x]\n", (unsigned long long)record.sequence,
		       bytes[0], bytes[1], bytes[2], bytes[3]);
	/* What failed last, which the message is of. */
	return back ? back : ret;
}

static int take(const struct bufshare_consumer_event *event)
{
	int ret = 0;

	if (event->kind == BUFSHARE_CONSUMER_JOINED)
		puts("joined");
	else if (event->kind == BUFSHARE_CONSUMER_RECORD && event->ended)
		puts("ended");
	else if (event->kind == BUFSHARE_CONSUMER_OVER)
		puts("over");
	else if (event->kind == BUFSHARE_CONSUMER_REJECTED)
		printf("rejected: %s\n", bufshare_last_message());
	else if (event->kind == BUFSHARE_CONSUMER_REFUSED)
		/* The stream, or a buffer of it: other frames may come, and it may be had later. */
		printf("refused: %s\n", bufshare_last_message());
	else if (event->kind == BUFSHARE_CONSUMER_FRAME)
		ret = show(event->frame);
	/* Its producer may end at any time. */
	return ret == -ESTALE ? 0 : ret;
}

int main(int argc, char **argv)
{
	struct bufshare_consumer_options options = {
		.size = sizeof(options), .flags = BUFSHARE_CONSUMER_REJOIN,
		.peer = argc > 1 ? argv[1] : "", .name = "frames",
	};
	struct bufshare_consumer_event event = { .size = sizeof(event) };
	struct bufshare_consumer *consumer = NULL;
	struct pollfd fds[] = { { -1, POLLIN, 0 }, { STDIN_FILENO, POLLIN, 0 } };
	int ret = bufshare_consumer_open(&options, &consumer);

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (ret == 0 && !fds[1].revents) {
		/* Before the first poll: what is there already makes no descriptor readable. */
		while ((ret = bufshare_consumer_next_event(consumer, &event, 0)) > 0)
			if ((ret = take(&event)) < 0)
				break;
		fds[0].fd = bufshare_consumer_get_fd(consumer);
		/* No descriptor says when what was refused is to be tried again. */
		if (ret == 0)
			poll(fds, 2, 1000);
	}
	if (ret < 0)
		fprintf(stderr, "%s\n", bufshare_last_message());
	bufshare_consumer_close(consumer);
	return ret < 0;
}
