/*
 * Connect, wait until the server hangs up, again; then print what was seen as JSON.
 *
 * Arguments: a port of 127.0.0.1 or the path of a UNIX socket; connections in all; clients at a
 * time; threads; seconds until a client gives up; connections a second, or 0 for as many as can be;
 * 1 for a source address of its own for each connection, from 127.1.0.0 on, or 0.
 *
 * A connect() to nowhere resets the connection that the server has closed: nothing is left in
 * TIME_WAIT, so ports do not run out, and every round finds the same machine. Where nothing else is
 * asked for, it also spares a new socket for each connection.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static union {
    struct sockaddr any;
    struct sockaddr_in tcp;
    struct sockaddr_un local;
} server;
static struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
static socklen_t length;
static int connections, rate, sources, reuse;
static int64_t limit, origin, *took, *since;
static _Atomic int started, ended, answered;

static void fail(const char *what) { perror(what); exit(1); }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* When the next connection may be started. */
static int64_t due(void) { return rate ? origin + started * 1000000000LL / rate : origin; }

static int64_t begin(int client) {
    since[client] = now();
    if (connect(client, &server.any, length) && errno != EINPROGRESS && errno != ECONNRESET)
        fail("load: connect");
    return since[client];
}

static int opened(int number) {
    int client = socket(server.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(0x7f010000 + number)};
    if (client < 0)
        fail("load: socket");
    if (sources
        && (setsockopt(client, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int))
            || bind(client, (void *)&source, sizeof source)))
        fail("load: bind");
    return client;
}

static void *work(void *clients) {
    struct epoll_event events[256];
    int64_t last = 0;
    int number, open = 0, queue = epoll_create1(0);
    for (;;) {
        while (open < (intptr_t)clients && started < connections && due() <= now()
               && (number = started++) < connections) {
            int client = opened(number);
            last = begin(client);
            struct epoll_event end = {.events = EPOLLRDHUP, .data.fd = client};
            epoll_ctl(queue, EPOLL_CTL_ADD, client, &end);
            open++;
        }
        int more = open < (intptr_t)clients && started < connections;
        int64_t end = now(), left = last + limit - end, pause = due() - end;
        if (open ? left <= 0 : !more)
            return NULL;
        if (more && (!open || pause < left))
            left = pause > 0 ? pause : 0;
        int ready = epoll_wait(queue, events, 256, left / 1000000 + 1);
        end = now();
        for (int i = 0; i < ready; i++) {
            int client = events[i].data.fd, error = 0;
            if (events[i].events & EPOLLERR)
                getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
            if (error == ECONNREFUSED)
                errno = error, fail("load: connect");
            took[ended++] = end - since[client];
            answered += !error && end - since[client] <= limit;
            connect(client, &nowhere, sizeof nowhere);
            if (reuse && started++ < connections)
                last = begin(client);
            else
                close(client), open--;
        }
    }
}

static int order(const void *a, const void *b) {
    int64_t x = *(int64_t *)a, y = *(int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 8)
        return fprintf(stderr, "load: 7 arguments, see load.c\n"), 2;
    if (strchr(argv[1], '/')) {
        server.local.sun_family = AF_UNIX;
        strncpy(server.local.sun_path, argv[1], sizeof server.local.sun_path - 1);
        length = sizeof server.local;
    } else {
        server.tcp.sin_family = AF_INET;
        server.tcp.sin_port = htons(atoi(argv[1]));
        server.tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        length = sizeof server.tcp;
    }
    connections = atoi(argv[2]);
    intptr_t clients = atoi(argv[3]), workers = atoi(argv[4]);
    limit = atoi(argv[5]) * 1000000000LL;
    rate = atoi(argv[6]);
    sources = atoi(argv[7]);
    reuse = server.any.sa_family == AF_INET && !rate && !sources;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    took = calloc(connections, sizeof *took);
    since = calloc(clients + workers + 16, sizeof *since);
    pthread_t threads[workers];
    origin = now();
    for (int i = 0; i < workers; i++)
        pthread_create(&threads[i], NULL, work, (void *)((clients + i) / workers));
    for (int i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    double wall = (now() - origin) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(took, ended, sizeof *took, order);
    printf("{\"answered\": %d, \"wall\": %f, \"load\": %f, \"p50\": %f, \"p99\": %f}\n", answered,
           wall, used.ru_utime.tv_sec + used.ru_stime.tv_sec
           + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
           took[ended / 2] / 1e6, took[(int)(ended * 0.99)] / 1e6);
}
