/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Calls the library where its memory of this thread is gone: as a thread ends, and in what runs at
 * exit. scripts/capi --test runs it, where there is no device at that path
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <libbufshare.h>

static void check(int is)
{
	if (!is) {
		printf("%s\n", bufshare_last_message());
		fflush(stdout);
		_exit(1);
	}
}

static void fail(void)
{
	struct bufshare *device;

	check(bufshare_open("/nonexistent/bufshare", &device) == -ENOENT);
}

static void call_late(void)
{
	fail();
	check(bufshare_last_message() && !bufshare_last_status());
}

/* Each round is later than what the round before made anew. */
static void end_thread(void *key)
{
	static int rounds;

	call_late();
	if (rounds++ < 3)
		pthread_setspecific(*(pthread_key_t *)key, key);
}

static void *run(void *key)
{
	pthread_setspecific(*(pthread_key_t *)key, key);
	fail();
	check(bufshare_last_message()[0]);
	return NULL;
}

__attribute__((destructor)) static void unload(void)
{
	call_late();
}

int main(void)
{
	pthread_key_t key;
	pthread_t thread;

	check(!atexit(call_late) && !pthread_key_create(&key, end_thread));
	check(!pthread_create(&thread, NULL, run, &key) && !pthread_join(thread, NULL));
	fail();
	return 0;
}
